"""What the plane keeps of its engines: at hand in memory, and written to the file soon after, in a thread.

Memory is what counts while the plane runs. A disk that refuses is told of (:attr:`Registry.trouble`) and tried again;
meanwhile the plane serves. Whoever must not go on before a change is on disk awaits :meth:`Registry.saved`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .entries import EngineEntry
from .store import Change, Kept, Store, Targets

log = logging.getLogger(__name__)
RETRY_S = 2.0
"""Between two tries to write to a disk that refuses."""


class Registry:
    """Engines and aliases. Belongs to one event loop.

    Args:
        path: The file; with ``None`` nothing outlives the process.
        lease_s: An engine that was not heard of for so long is lost.
        clock: Unix seconds.
    """

    def __init__(self, path: Path | None, lease_s: float, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._lease_s = lease_s
        self._clock = clock
        self._kept = Kept()
        self._lost: set[str] = set()
        self._store: Store | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._writer: asyncio.Task[None] | None = None
        self._work = asyncio.Event()
        self._unsaved_engines: set[str] = set()
        self._unsaved_aliases: set[str] = set()
        self._unsaved_heard: set[str] = set()
        self._waiting: list[asyncio.Future[bool]] = []
        self._closing = self._writing = False
        self.trouble: str | None = None
        """Why what is new cannot be written, while that is so."""

    async def open(self) -> bool:
        """Read what is kept, and keep from now on.

        Returns:
            Whether there is a file, and it was not open before.

        Raises:
            SageLLMError: See :class:`~.store.Store`.
        """
        if self._path is None or self._store is not None:
            return False
        self._thread = ThreadPoolExecutor(1, "registry")
        loop = asyncio.get_running_loop()
        try:
            self._store = await loop.run_in_executor(self._thread, Store, self._path)
            self._kept = await loop.run_in_executor(self._thread, self._store.load)
        except BaseException:
            if self._store is not None:
                self._store.close()
                self._store = None
            self._thread.shutdown(wait=False)
            raise
        self._closing = False
        self._writer = asyncio.create_task(self._write(), name="registry")
        return True

    async def close(self) -> None:
        """Write what is not yet written, as far as the disk lets, and let go of the file."""
        if self._writer is None or self._store is None or self._thread is None:
            return
        self._closing = True
        self._work.set()
        await self._writer
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.close)
        self._thread.shutdown(wait=False)
        self._store = self._writer = self._thread = None

    # --- what is known ------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> tuple[EngineEntry, ...]:
        """All engines."""
        return tuple(self._kept.engines.values())

    def get(self, engine_id: str) -> EngineEntry | None:
        """One engine."""
        return self._kept.engines.get(engine_id)

    @property
    def aliases(self) -> dict[str, Targets]:
        """Other names for models, each with the shares of those it stands for."""
        return dict(self._kept.aliases)

    def targets(self, name: str) -> Targets | None:
        """What one alias stands for."""
        return self._kept.aliases.get(name)

    def last_heard(self, engine_id: str) -> float | None:
        """When an engine was last heard of, in Unix seconds."""
        return self._kept.heard.get(engine_id)

    def is_lost(self, engine_id: str) -> bool:
        """Whether its lease ran out, and it was not heard of since."""
        return engine_id in self._lost

    # --- what changes -------------------------------------------------------------------------------------------------

    def put(self, entry: EngineEntry) -> None:
        """Keep an engine as ``entry`` says."""
        if self._kept.engines.get(entry.engine_id) != entry:
            self._kept.engines[entry.engine_id] = entry
            self._unsaved_engines.add(entry.engine_id)
            self._work.set()

    def remove(self, engine_id: str) -> None:
        """Keep an engine no longer."""
        if self._kept.engines.pop(engine_id, None) is not None:
            self._kept.heard.pop(engine_id, None)
            self._lost.discard(engine_id)
            self._unsaved_heard.discard(engine_id)
            self._unsaved_engines.add(engine_id)
            self._work.set()

    def alias(self, name: str, targets: Targets | None) -> None:
        """Let ``name`` stand for models by their shares, or with ``None`` for nothing."""
        if targets is None:
            self._kept.aliases.pop(name, None)
        else:
            self._kept.aliases[name] = dict(targets)
        self._unsaved_aliases.add(name)
        self._work.set()

    def heard(self, engine_id: str) -> None:
        """Renew an engine's lease."""
        if engine_id in self._kept.engines:
            self._kept.heard[engine_id] = self._clock()
            self._lost.discard(engine_id)
            # Written with the next change or the next look at leases: a write each second an engine wears disks out.
            self._unsaved_heard.add(engine_id)

    def expire(self) -> list[str]:
        """Engines whose lease has run out since this was last asked."""
        limit = self._clock() - self._lease_s
        lost = [one for one, moment in self._kept.heard.items() if moment < limit and one not in self._lost]
        self._lost.update(lost)
        if self._unsaved_heard:
            self._work.set()
        return lost

    async def saved(self) -> bool:
        """Return once what was changed before is on disk, or the disk has refused it: whether it is."""
        if self._writer is None or not (self._writing or self._unsaved_engines or self._unsaved_aliases):
            return self.trouble is None
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(written)
        self._work.set()
        return await written

    # --- writing ------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        while not self._closing:
            await self._work.wait()
            self._work.clear()
            saved = await self._flush()
            if not saved and not self._closing:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._work.wait(), RETRY_S)
                self._work.set()
        await self._flush()

    async def _flush(self) -> bool:
        engines, aliases, heard = self._unsaved_engines, self._unsaved_aliases, self._unsaved_heard
        waiting, self._waiting = self._waiting, []
        if engines or aliases or heard:
            self._unsaved_engines, self._unsaved_aliases, self._unsaved_heard = set(), set(), set()
            assert self._store is not None
            change = Change(
                engines={one: self._kept.engines.get(one) for one in engines},
                heard={one: self._kept.heard[one] for one in heard if one in self._kept.heard},
                aliases={name: self._kept.aliases.get(name) for name in aliases},
            )
            self._writing = True
            try:
                await asyncio.get_running_loop().run_in_executor(self._thread, self._store.apply, change)
            except sqlite3.Error as error:
                if self.trouble is None:
                    log.error("the registry %s cannot be written: %s", self._path, error)
                self.trouble = f"the registry {self._path} cannot be written: {error}"
                self._unsaved_engines |= engines
                self._unsaved_aliases |= aliases
                self._unsaved_heard |= {one for one in heard if one in self._kept.engines}
            else:
                if self.trouble is not None:
                    log.warning("the registry %s is written again", self._path)
                self.trouble = None
            finally:
                self._writing = False
        for one in waiting:
            if not one.done():
                one.set_result(self.trouble is None)
        return self.trouble is None
