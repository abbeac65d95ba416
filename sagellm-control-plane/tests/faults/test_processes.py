"""Engines in processes of their own that are killed, frozen, slow or not there: what they had ends once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from conftest import QUICK, ask, mock, until
from sagellm_control_plane.service import ControlPlaneService
from sagellm_control_plane.settings import PlaneSettings
from sagellm_protocol import (
    DeltaEvent,
    EndEvent,
    EngineState,
    ErrorCode,
    ErrorEvent,
    RequestEnding,
    SageLLMError,
    SamplingParams,
    StreamEvent,
)
from sagellm_protocol.testing import check_stream
from sagellm_protocol.testing.mock.text import answer, encode

RECOVERY_S = 30.0
"""Bound of the README's for a restart, with room for a machine that is busy with other tests."""
TOKENS = 120
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
WHOLE = (answer(encode("hello")) * 20)[:TOKENS]


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlaneService]:
    """A plane over two engine servers; however a test ends, its counts add up and nothing is in flight."""
    settings = PlaneSettings.of(**{**QUICK, "routing": "least_load", "abort_timeout_s": 0.5, "stop_timeout_s": 2.0})
    made = ControlPlaneService(settings)
    await made.start()
    spec = mock(itl_ms=4.0)
    await asyncio.gather(*(made.start_engine(spec, "subprocess", name) for name in "ab"))
    yield made
    await made.stop()
    status = made.status_now()
    assert status.in_flight == status.queued == made.dispatcher.placed == 0
    assert status.accepted == sum(status.ended.values())


async def read(plane: ControlPlaneService, sampling: SamplingParams = GREEDY) -> list[StreamEvent]:
    async def events() -> list[StreamEvent]:
        return [event async for event in plane.submit(ask(sampling=sampling))]

    return await asyncio.wait_for(events(), RECOVERY_S)


def text_of(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, DeltaEvent))


def signalled(plane: ControlPlaneService, name: str, number: int) -> None:
    handle: Any = plane.fleet.member(name).handle
    os.kill(handle.pid, number)


def under_way(plane: ControlPlaneService, name: str) -> Callable[[], bool]:
    return lambda: any(ticket.produced_tokens > 5 for ticket in plane.fleet.member(name).tickets.values())


async def test_streams_of_an_engine_that_is_killed_go_on_and_it_comes_back(plane: ControlPlaneService) -> None:
    reading = [asyncio.create_task(read(plane)) for _ in range(8)]
    await until(under_way(plane, "a"))
    signalled(plane, "a", signal.SIGKILL)
    for events in await asyncio.gather(*reading):
        check_stream(events)
        assert isinstance(events[-1], EndEvent)
        assert text_of(events) == WHOLE
    status = plane.status_now()
    assert status.resumed >= 1
    assert status.ended[RequestEnding.COMPLETED] == status.accepted == 8
    await until(lambda: plane.fleet.member("a").ready, RECOVERY_S)


async def test_an_engine_that_is_frozen_slows_no_other_and_what_it_had_goes_on(plane: ControlPlaneService) -> None:
    reading = [asyncio.create_task(read(plane)) for _ in range(8)]
    await until(under_way(plane, "a"))
    signalled(plane, "a", signal.SIGSTOP)
    frozen = len(plane.fleet.member("a").tickets)
    assert frozen
    done, _ = await asyncio.wait(reading, timeout=RECOVERY_S)
    assert len(done) == 8
    assert [text_of(task.result()) for task in reading] == [WHOLE] * 8
    assert 1 <= plane.status_now().resumed <= frozen
    # It is killed and started anew, for it does not answer its launcher either.
    await until(lambda: plane.fleet.member("a").ready, RECOVERY_S)


async def test_streams_that_cannot_be_repeated_fail_and_say_why_and_no_other_does(plane: ControlPlaneService) -> None:
    drawn = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    reading = [asyncio.create_task(read(plane, drawn)) for _ in range(8)]
    await until(under_way(plane, "a"))
    lost = len(plane.fleet.member("a").tickets)
    signalled(plane, "a", signal.SIGKILL)
    endings = [(await task)[-1] for task in reading]
    failed = [end for end in endings if isinstance(end, ErrorEvent)]
    assert 1 <= len(failed) <= lost, "what had not begun was tried elsewhere"
    assert {end.error.code for end in failed} == {ErrorCode.ENGINE_FAILED}
    assert plane.status_now().ended[RequestEnding.COMPLETED] == 8 - len(failed)


async def test_a_slow_engine_slows_no_other(plane: ControlPlaneService) -> None:
    await plane.start_engine(mock(itl_ms=5000.0), "subprocess", "slow")
    reading = [asyncio.create_task(read(plane)) for _ in range(9)]
    await until(lambda: sum(task.done() for task in reading) >= 6, RECOVERY_S)
    held = len(plane.fleet.member("slow").tickets)
    assert held >= 1
    await until(lambda: sum(task.done() for task in reading) == 9 - held, RECOVERY_S)
    for task in reading:
        task.cancel()
    await asyncio.wait(reading)


async def test_a_burst_of_ten_times_what_fits_is_refused_beyond_the_queue_and_counts_add_up() -> None:
    plane = ControlPlaneService(PlaneSettings.of(**QUICK, max_queued=8, slack=0.0))
    await plane.start()
    await plane.start_engine(mock(max_num_seqs=2, itl_ms=1.0), "subprocess", "e")
    endings = [events[-1] for events in await asyncio.gather(*(read(plane) for _ in range(100)))]
    refused = [end for end in endings if isinstance(end, ErrorEvent)]
    assert {end.error.code for end in refused} == {ErrorCode.QUEUE_FULL}
    assert all((end.error.retry_after_s or 0) >= 1 for end in refused)
    status = plane.status_now()
    assert status.ended[RequestEnding.COMPLETED] == 100 - len(refused) == 10
    assert status.refused_early == len(refused)
    assert isinstance((await read(plane))[-1], EndEvent), "it serves on"
    await plane.stop()
    assert plane.status_now().in_flight == 0


async def test_an_address_that_refuses_connections_costs_no_other_engine(plane: ControlPlaneService) -> None:
    with pytest.raises(SageLLMError) as refusal:
        await plane.attach_engine("http://127.0.0.1:9", "nobody")
    assert refusal.value.code is ErrorCode.UNAVAILABLE
    assert "nobody" not in plane.fleet
    assert isinstance((await read(plane))[-1], EndEvent)
    assert all(member.state is EngineState.READY for member in plane.fleet)
