"""A launcher that starts engines in its own process is a launcher."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sagellm_protocol import Engine, EngineSpec, EngineState, plugins
from sagellm_protocol.testing.conformance.launcher import LauncherConformance


class InProcessHandle:
    def __init__(self, engine: Engine, engine_id: str) -> None:
        self.engine = engine
        self.engine_id = engine_id

    async def stop(self, timeout_s: float | None = None) -> None:
        if timeout_s is not None:
            await asyncio.wait_for(self.engine.drain(), timeout_s)
        await self.engine.stop()

    async def status(self) -> EngineState:
        return self.engine.info.state

    async def logs(self, lines: int = 100) -> Sequence[str]:
        return []


class InProcessLauncher:
    async def start(self, spec: EngineSpec, engine_id: str) -> InProcessHandle:
        engine = plugins.load(plugins.ENGINES, spec.engine)(spec)
        await engine.start()
        return InProcessHandle(engine, engine_id)


class TestInProcessLauncher(LauncherConformance):
    def make_launcher(self) -> InProcessLauncher:
        return InProcessLauncher()
