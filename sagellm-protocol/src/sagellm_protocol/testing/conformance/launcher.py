"""The conformance suite of :class:`~sagellm_protocol.interfaces.Launcher`. Needs pytest-asyncio."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, ClassVar

import pytest

from sagellm_protocol.engine import EngineSpec, EngineState
from sagellm_protocol.errors import SageLLMError
from sagellm_protocol.events import EndEvent
from sagellm_protocol.interfaces import EngineHandle, Launcher
from sagellm_protocol.requests import Request
from sagellm_protocol.testing.check import check_stream, read_all


class LauncherConformance:
    """Subclass it, and implement :meth:`make_launcher`. It starts mock engines."""

    pytestmark: ClassVar[Any] = pytest.mark.asyncio

    patience_s: ClassVar[float] = 60.0
    """Longest wait for anything."""

    def make_launcher(self) -> Launcher:
        """The launcher under test."""
        raise NotImplementedError("implement make_launcher")

    async def launch(self, launcher: Launcher, **options: Any) -> EngineHandle:
        """Start a mock engine under a fresh id."""
        spec = EngineSpec(engine="mock", model="m", options=options)
        return await asyncio.wait_for(launcher.start(spec, f"engine-{uuid.uuid4().hex[:8]}"), self.patience_s)

    async def test_an_engine_that_was_started_answers(self) -> None:
        handle = await self.launch(self.make_launcher())
        try:
            assert await handle.status() is EngineState.READY
            assert handle.engine.info.state is EngineState.READY
            request = Request(request_id="r", model="m", prompt="Hello")
            events = await asyncio.wait_for(read_all(handle.engine.generate(request)), self.patience_s)
            assert isinstance(check_stream(events, request), EndEvent)
        finally:
            await handle.stop()

    async def test_engines_are_told_apart_by_their_ids(self) -> None:
        launcher = self.make_launcher()
        handles = [await self.launch(launcher), await self.launch(launcher)]
        try:
            assert len({handle.engine_id for handle in handles}) == 2
        finally:
            for handle in handles:
                await handle.stop()

    async def test_a_stopped_engine_is_stopped_and_stays_so(self) -> None:
        handle = await self.launch(self.make_launcher())
        await asyncio.wait_for(handle.stop(timeout_s=5.0), self.patience_s)
        assert await handle.status() is EngineState.STOPPED
        await asyncio.wait_for(handle.stop(), self.patience_s)
        assert await handle.status() is EngineState.STOPPED

    async def test_its_last_lines_can_be_read(self) -> None:
        handle = await self.launch(self.make_launcher())
        try:
            assert len(await handle.logs(lines=3)) <= 3
        finally:
            await handle.stop()

    async def test_an_engine_that_does_not_start_says_why(self) -> None:
        with pytest.raises(SageLLMError, match="the dog ate it"):
            await self.launch(self.make_launcher(), fail_start="the dog ate it")

    async def test_an_engine_that_does_not_exist_is_refused_by_name(self) -> None:
        spec = EngineSpec(engine="made-up", model="m")
        with pytest.raises(SageLLMError, match="made-up"):
            await asyncio.wait_for(self.make_launcher().start(spec, "e"), self.patience_s)
