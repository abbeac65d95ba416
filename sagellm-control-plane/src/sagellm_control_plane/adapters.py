"""LoRA adapters of engines of this plane: loaded on all engines of a model, and unloaded from all that serve them.

Knows nothing of what is in an adapter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sagellm_protocol import AdapterHost, AdapterSpec, ErrorCode, SageLLMError
from sagellm_protocol.features import ADAPTER

from .crew import Crew
from .fleet import Fleet, Launched, Member


class AdapterDesk:
    """Loads and unloads.

    Args:
        fleet: The engines.
        crew: Told of names that come and go.
    """

    def __init__(self, fleet: Fleet, crew: Crew) -> None:
        self._fleet = fleet
        self._crew = crew

    async def load(self, adapter: AdapterSpec) -> None:
        """Have every engine of the adapter's model serve it; where one refuses, none does.

        Raises:
            SageLLMError: As :meth:`~sagellm_protocol.AdapterHost.load_adapter`; ``INVALID_REQUEST`` where several
                models take adapters and ``base`` names none of them.
        """
        members = self._hosts(adapter)
        if any(adapter.name in member.served for member in self._fleet):
            raise SageLLMError(ErrorCode.CONFLICT, f"{adapter.name!r} is a model's name; choose another", "name")
        results = await asyncio.gather(*(self._load(member, adapter) for member in members), return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            if not adapter.replace:
                loaded = [member for member, result in zip(members, results, strict=True) if result is None]
                undone = (self._unload(member, adapter.name) for member in loaded)
                await asyncio.gather(*undone, return_exceptions=True)
            raise failures[0]

    async def unload(self, name: str) -> None:
        """Have no engine serve it any more.

        Raises:
            SageLLMError: ``NOT_FOUND``, listing those there are; what an engine refuses with.
        """
        members = [member for member in self._fleet if name in member.adapters]
        if not members:
            known = ", ".join(sorted(frozenset[str]().union(*(member.adapters for member in self._fleet)))) or "none"
            raise SageLLMError(ErrorCode.NOT_FOUND, f"no adapter {name!r} is loaded; there are: {known}", "name")
        results = await asyncio.gather(*(self._unload(member, name) for member in members), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _hosts(self, adapter: AdapterSpec) -> Sequence[Member]:
        able = [member for member in self._fleet if member.ready and ADAPTER in member.capabilities.features]
        if adapter.base is not None:
            named = [member for member in able if adapter.base in member.served]
            if not named and not any(adapter.base in member.served for member in self._fleet):
                known = ", ".join(sorted({name for member in self._fleet for name in member.served})) or "none"
                raise SageLLMError(
                    ErrorCode.MODEL_NOT_FOUND, f"no model {adapter.base!r} here; models: {known}", "base"
                )
            able = named
        if not able:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED, "no engine here takes adapters; start one with adapters or an adapter_root"
            )
        if len({member.served for member in able}) > 1:
            models = ", ".join(sorted({member.served[0] for member in able}))
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"say which model the adapter is for, as base: {models} take adapters",
                "base",
            )
        return able

    async def _load(self, member: Member, adapter: AdapterSpec) -> None:
        await _host(member).load_adapter(adapter)
        member.learn_names()
        if isinstance(member.origin, Launched):
            spec = member.origin.spec
            place = str(Path(spec.adapter_root or "") / adapter.path)
            # Should it be started anew, it begins with what it had.
            self._remember(member, {**spec.adapters, adapter.name: place})
        self._crew.renamed(member)

    async def _unload(self, member: Member, name: str) -> None:
        await _host(member).unload_adapter(name)
        member.learn_names()
        if isinstance(member.origin, Launched):
            self._remember(
                member, {known: path for known, path in member.origin.spec.adapters.items() if known != name}
            )
        self._crew.renamed(member)

    def _remember(self, member: Member, adapters: dict[str, str]) -> None:
        assert isinstance(member.origin, Launched)
        spec = member.origin.spec.model_copy(update={"adapters": adapters})
        member.origin = replace(member.origin, spec=spec)


def _host(member: Member) -> AdapterHost:
    engine: object = member.engine
    if not isinstance(engine, AdapterHost):
        raise SageLLMError(ErrorCode.UNSUPPORTED, f"engine {member.engine_id} takes no adapters while it runs")
    return engine
