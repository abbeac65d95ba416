"""Ties a crew's engines to the registry: what becomes of them is kept, and what was kept is brought back.

Knows nothing of how engines are started or stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sagellm_control_plane.fleet import Attached, Launched, Member

from .entries import EngineEntry
from .registry import Registry


class Keeper:
    """Told by a crew what becomes of its engines.

    Args:
        registry: Where it is kept.
        path: The registry's file, beside which engines keep what they need to be found again.
        lease_s: As the registry's.
    """

    def __init__(self, registry: Registry, path: Path | None, lease_s: float) -> None:
        self._registry = registry
        self._lease_s = lease_s
        self.folder = None if path is None else Path(f"{path}.engines")
        self._going_away = False

    async def joining(self, member: Member) -> None:
        """An engine is about to be started: what is begun must not be forgotten by a plane that dies over it."""
        self.changed(member)
        await self._registry.saved()

    def changed(self, member: Member) -> None:
        """An engine is otherwise than it was."""
        entry = None if self._going_away else entry_of(member)
        if entry is not None:
            self._registry.put(entry)

    def heard(self, member: Member) -> None:
        """An engine gave a sign of life."""
        self._registry.heard(member.engine_id)

    async def leaving(self, member: Member) -> None:
        """An engine is about to be stopped for good: whoever comes after a plane that dies over it must finish that."""
        known = self._registry.get(member.engine_id)
        if known is not None and not self._going_away:
            self._registry.put(known.model_copy(update={"leaving": True}))
            await self._registry.saved()

    def gone(self, member: Member) -> None:
        """Nothing of an engine is left."""
        if not self._going_away:
            self._registry.remove(member.engine_id)

    def going_away(self) -> None:
        """The plane itself stops: engines that go from now on are to be there when it comes back."""
        self._going_away = self.folder is not None

    def back(self) -> None:
        """It serves again."""
        self._going_away = False

    async def watch_leases(self, lost: Callable[[str, str], None]) -> None:
        """Tell ``lost`` of each engine whose lease runs out, and why that is so."""
        while True:
            for engine_id in self._registry.expire():
                lost(engine_id, f"it was not heard of for {self._lease_s:g} s (lease_s)")
            await asyncio.sleep(min(1.0, self._lease_s / 4))


def entry_of(member: Member) -> EngineEntry | None:
    """What to keep of an engine; nothing of one that only this process could start again."""
    origin = member.origin
    if isinstance(origin, Launched) and origin.through is not None:
        return None
    return EngineEntry(
        engine_id=member.engine_id,
        names=member.names,
        weight=member.weight,
        drained=member.unwanted,
        source=member.source,
        **_of(origin),
    )


def _of(origin: Launched | Attached) -> dict[str, Any]:
    if isinstance(origin, Attached):
        return {"url": origin.url, "api_key": origin.api_key}
    return {"launcher": origin.launcher, "spec": origin.spec, "launch": dict(origin.launch)}


def member_of(entry: EngineEntry) -> Member:
    """The engine that was kept."""
    origin: Launched | Attached
    if entry.spec is not None and entry.launcher is not None:
        origin = Launched(entry.launcher, entry.spec, launch=entry.launch)
        names = entry.names or entry.spec.names
    else:
        assert entry.url is not None
        origin, names = Attached(entry.url, entry.api_key), entry.names
    member = Member(entry.engine_id, origin, names)
    member.unwanted, member.weight, member.source = entry.drained, entry.weight, entry.source
    return member
