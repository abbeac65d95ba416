"""A second engine for a request whose first is slow to begin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from conftest import ask, mock, until
from sagellm_control_plane.hedging import LEAST_KNOWN, Delays
from sagellm_control_plane.service import ControlPlaneService
from sagellm_protocol import SLO, EndEvent, ErrorCode, ErrorEvent, RequestEnding, SageLLMError, StreamEvent
from sagellm_protocol.testing import check_stream

Planes = Callable[..., ControlPlaneService]
PATIENCE_S = 20.0
STUCK = {"prefill_tokens_per_s": 0.01}


def test_a_delay_is_known_once_enough_requests_have_begun() -> None:
    delays = Delays(0.9)
    for number in range(LEAST_KNOWN - 1):
        delays.note("m", float(number))
    assert delays.slow_s("m") is None
    delays.note("m", 100.0)
    assert delays.slow_s("m") == pytest.approx(17.0)
    assert delays.slow_s("other") is None


def test_a_delay_follows_what_was_measured_of_late() -> None:
    delays = Delays(0.5)
    for seconds in [1.0] * 300 + [3.0] * 300:
        delays.note("m", seconds)
        delays.slow_s("m")
    assert delays.slow_s("m") == 3.0


async def hedging(planes: Planes, first: dict[str, Any], second: dict[str, Any], **settings: Any) -> Any:
    """A plane that has learned that 5 ms are slow, whose first engine gets what comes first."""
    plane = planes(hedge_percentile=0.9, routing="round_robin", poll_interval_s=60.0, **settings)
    assert plane.attempts.hedger is not None
    for _ in range(LEAST_KNOWN):
        plane.attempts.hedger.delays.note("m", 0.005)
    await plane.start_engine(mock(**first), engine_id="first")
    await plane.start_engine(mock(**second), engine_id="second")
    return plane


async def read(plane: ControlPlaneService, **fields: Any) -> list[StreamEvent]:
    async def events() -> list[StreamEvent]:
        return [event async for event in plane.submit(ask(**fields))]

    return await asyncio.wait_for(events(), PATIENCE_S)


async def test_a_request_that_one_engine_is_slow_to_begin_is_answered_by_another(planes: Planes) -> None:
    plane = await hedging(planes, STUCK, {})
    for _ in range(3):
        events = await read(plane)
        check_stream(events)
        assert isinstance(events[-1], EndEvent)
    status = plane.status_now()
    assert status.hedges_won == status.hedged >= 1
    assert status.accepted == status.ended[RequestEnding.COMPLETED] == 3
    first = plane.fleet.member("first").engine
    assert plane.dispatcher.placed == 0
    await until(lambda: not first._jobs)


async def test_no_second_engine_is_asked_when_the_first_is_quick_or_hedging_is_off(planes: Planes) -> None:
    plane = await hedging(planes, {}, {})
    plane.attempts.hedger.delays = Delays(0.9)
    for _ in range(5):
        await read(plane)
    assert plane.status_now().hedged == 0
    assert planes().attempts.hedger is None


async def test_the_slower_of_two_is_let_go_of_when_the_first_begins_after_all(planes: Planes) -> None:
    plane = await hedging(planes, {"prefill_tokens_per_s": 60.0}, STUCK)
    assert isinstance((await read(plane))[-1], EndEvent)
    status = plane.status_now()
    assert (status.hedged, status.hedges_won) == (1, 0)
    second = plane.fleet.member("second").engine
    await until(lambda: not second._jobs)


async def test_a_second_engine_that_fails_does_not_end_the_first(planes: Planes) -> None:
    plane = await hedging(planes, {"prefill_tokens_per_s": 60.0}, {"fail_after_tokens": 0})
    assert isinstance((await read(plane))[-1], EndEvent)
    assert plane.status_now().hedges_won == 0


async def test_a_first_engine_that_fails_does_not_end_the_second(planes: Planes) -> None:
    plane = await hedging(planes, {**STUCK}, {"prefill_tokens_per_s": 60.0})
    reading = asyncio.create_task(read(plane))
    await until(lambda: plane.status_now().hedged == 1)
    plane.fleet.member("first").engine.die("pulled the plug")
    assert isinstance((await reading)[-1], EndEvent)
    assert plane.status_now().hedges_won == 1


async def test_cancelling_and_deadlines_end_both(planes: Planes) -> None:
    plane = await hedging(planes, STUCK, STUCK)
    reading = asyncio.create_task(read(plane, request_id="mine"))
    await until(lambda: plane.status_now().hedged == 1)
    assert await plane.cancel("mine")
    last = (await reading)[-1]
    assert isinstance(last, ErrorEvent)
    assert last.error.code is ErrorCode.CANCELLED
    last = (await read(plane, slo=SLO(deadline_ms=50)))[-1]
    assert isinstance(last, ErrorEvent)
    assert last.error.code is ErrorCode.DEADLINE_EXCEEDED
    for name in ("first", "second"):
        engine = plane.fleet.member(name).engine
        await until(lambda engine=engine: not engine._jobs)  # type: ignore[misc]
        load = plane.fleet.member(name).load
        assert (load.sequences, load.queued_tokens, load.held_tokens) == (0, 0, 0)


async def test_a_caller_that_leaves_while_both_work_leaves_nothing(planes: Planes) -> None:
    plane = await hedging(planes, STUCK, STUCK)
    reading = asyncio.create_task(read(plane))
    await until(lambda: plane.status_now().hedged == 1)
    reading.cancel()
    await asyncio.wait([reading])
    assert plane.status_now().in_flight == plane.dispatcher.placed == 0
    assert plane.ledger.ended[RequestEnding.CANCELLED] == 1


async def test_a_cancel_after_the_second_engine_began_reaches_it(planes: Planes) -> None:
    plane = await hedging(planes, STUCK, {"itl_ms": 2.0})
    stream = plane.submit(ask(max_tokens=5000, request_id="mine"))
    await anext(stream)
    await anext(stream)
    await until(lambda: plane.status_now().hedges_won == 1)
    assert await plane.cancel("mine")
    second = plane.fleet.member("second").engine
    await until(lambda: not second._jobs)
    assert isinstance([event async for event in stream][-1], ErrorEvent)


@pytest.mark.parametrize("share", [0, 1, 1.5])
def test_a_percentile_is_between_nought_and_one(planes: Planes, share: float) -> None:
    with pytest.raises(SageLLMError, match="hedge_percentile must be between 0 and 1"):
        planes(hedge_percentile=share)
