"""Engines that sleep get nothing, here and behind a server; those that cannot are told of by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from conftest import ask, mock, until
from sagellm_control_plane.service import ControlPlaneService
from sagellm_protocol import EngineState, ErrorCode, ErrorEvent, SageLLMError, SleepManager, StreamEvent
from sagellm_protocol.interfaces import check_sleep
from sagellm_protocol.testing.mock_engine import MockEngine
from serving import served


class Sleeper(MockEngine):
    """A mock that can sleep, and keeps what it was told."""

    told: list[Any]

    async def sleep(self, level: int = 1, mode: str = "wait") -> None:
        check_sleep(level, mode)
        self.told = [*getattr(self, "told", []), (level, mode)]
        self._state = EngineState.SLEEPING
        await asyncio.sleep(0)

    async def wake(self) -> None:
        self._state = EngineState.READY

    async def reload(self, model: str, revision: str | None = None) -> None:
        if model == "deeper":
            raise SageLLMError(ErrorCode.INVALID_REQUEST, "num_layers 3 instead of 2", "model")
        self.told = [*getattr(self, "told", []), (model, revision)]


async def told(plane: ControlPlaneService) -> list[StreamEvent]:
    return [event async for event in plane.submit(ask())]


def state(plane: ControlPlaneService) -> EngineState:
    [record] = plane.status_now().engines
    return record.info.state


async def test_an_engine_behind_a_server_sleeps_wakes_and_reloads(planes: Callable[..., ControlPlaneService]) -> None:
    engine = Sleeper(mock())
    async with served(engine) as url:
        plane = planes()
        assert isinstance(plane, SleepManager)
        await plane.start()
        await plane.attach_engine(url, "e")
        await plane.sleep_engine("e", 2, "abort")
        assert engine.told == [(2, "abort")]
        assert state(plane) is EngineState.SLEEPING
        status = plane.status_now()
        assert not status.ready
        assert "e is SLEEPING" in (status.reason or "")
        [refused] = await told(plane)
        assert isinstance(refused, ErrorEvent)
        assert refused.error.code is ErrorCode.UNAVAILABLE
        assert "/wake_up" in refused.error.message
        await plane.wake_engine("e")
        assert plane.status_now().ready
        assert (await told(plane))[-1].type == "end"
        await plane.reload_engine("e", "other", "v2")
        assert engine.told[-1] == ("other", "v2")
        with pytest.raises(SageLLMError, match="num_layers 3") as refusal:
            await plane.reload_engine("e", "deeper")
        assert (refusal.value.code, refusal.value.param) == (ErrorCode.INVALID_REQUEST, "model")
        assert (await told(plane))[-1].type == "end"


async def test_a_sleep_of_the_engines_own_is_noticed_and_no_reason_to_restart_it(
    planes: Callable[..., ControlPlaneService],
) -> None:
    engine = Sleeper(mock())
    async with served(engine) as url:
        plane = planes()
        await plane.start()
        await plane.attach_engine(url, "e")
        await engine.sleep()
        await until(lambda: state(plane) is EngineState.SLEEPING)
        await engine.wake()
        await until(lambda: plane.status_now().ready)


async def test_what_cannot_sleep_is_named_and_serves_on(planes: Callable[..., ControlPlaneService]) -> None:
    plane = planes()
    await plane.start()
    await plane.start_engine(mock(), engine_id="e")
    for change in (plane.sleep_engine("e"), plane.wake_engine("e"), plane.reload_engine("e", "other")):
        with pytest.raises(SageLLMError, match="can neither sleep") as refusal:
            await change
        assert refusal.value.code is ErrorCode.UNSUPPORTED
    assert (await told(plane))[-1].type == "end"
    async with served(MockEngine(mock())) as url:
        await plane.attach_engine(url, "remote")
        with pytest.raises(SageLLMError, match="can neither sleep"):
            await plane.sleep_engine("remote")


async def test_what_there_is_not_is_refused(planes: Callable[..., ControlPlaneService]) -> None:
    plane = planes()
    await plane.start()
    with pytest.raises(SageLLMError) as refusal:
        await plane.sleep_engine("nobody")
    assert refusal.value.code is ErrorCode.NOT_FOUND
    with pytest.raises(SageLLMError) as refusal:
        await plane.sleep_engine("nobody", 3)
    assert (refusal.value.code, refusal.value.param) == (ErrorCode.INVALID_REQUEST, "level")
