"""What launchers share. The interface itself is :class:`sagellm_protocol.Launcher`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from sagellm_protocol import EngineHandle, EngineSpec, Launcher, plugins
from sagellm_protocol.interfaces import Engine


@runtime_checkable
class Adopting(Launcher, Protocol):
    """A launcher whose engines can outlive who started them."""

    def keeping(self, folder: Path) -> Adopting:
        """One like it, whose engines do; what it needs to find them again is kept in ``folder``."""
        ...

    async def adopt(self, spec: EngineSpec, engine_id: str) -> EngineHandle | None:
        """The engine of that id if it runs, or is starting, since before; never a second one of it."""
        ...


@runtime_checkable
class Leaving(EngineHandle, Protocol):
    """A handle whose engine can go on without it."""

    async def leave(self) -> None:
        """Let go of the engine; it goes on."""
        ...


def make_engine(spec: EngineSpec) -> Engine:
    """Make the engine that ``spec`` asks for; loads nothing of the model yet.

    Raises:
        SageLLMError: ``NOT_INSTALLED`` for an unknown engine, listing those there are; or what the engine refuses.
    """
    engine: Engine = plugins.make(plugins.ENGINES, spec.engine, Engine, spec)
    return engine
