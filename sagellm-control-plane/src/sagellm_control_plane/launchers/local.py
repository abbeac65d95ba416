"""Engines in this process: the front is a plain object here, and runs its core in a child process of its own.

Keeps no output apart: what such an engine writes goes where this process writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import anyio

from sagellm_protocol import EngineSpec, EngineState
from sagellm_protocol.interfaces import Engine

from .base import make_engine


class LocalHandle:
    """An engine of this process; implements :class:`sagellm_protocol.EngineHandle`."""

    def __init__(self, engine_id: str, engine: Engine) -> None:
        self._engine_id = engine_id
        self._engine = engine

    @property
    def engine_id(self) -> str:
        """The id it was started under."""
        return self._engine_id

    @property
    def engine(self) -> Engine:
        """The front itself."""
        return self._engine

    async def stop(self, timeout_s: float | None = None) -> None:
        """Drain for at most ``timeout_s``, then stop."""
        if timeout_s:
            with anyio.move_on_after(timeout_s):
                await self._engine.drain()
        await self._engine.stop()

    async def status(self) -> EngineState:
        """As the front reports it."""
        return self._engine.info.state

    async def logs(self, lines: int = 100) -> Sequence[str]:
        """Empty: an engine of this process shares its output."""
        return ()


class LocalLauncher:
    """Starts engines in this process; implements :class:`sagellm_protocol.Launcher`."""

    async def start(self, spec: EngineSpec, engine_id: str) -> LocalHandle:
        """Make the engine and start it.

        Raises:
            SageLLMError: With the root cause; nothing is left running.
        """
        # Importing an engine's package takes long enough to hold up everyone on the loop.
        engine = await asyncio.to_thread(make_engine, spec)
        try:
            await engine.start()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await engine.stop()
            raise
        return LocalHandle(engine_id, engine)


def create() -> LocalLauncher:
    """Entry point ``local`` of the group ``sagellm.launchers``."""
    return LocalLauncher()
