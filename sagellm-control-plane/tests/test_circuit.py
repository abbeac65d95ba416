"""Circuit breakers: alone, and between a plane and engines that live and fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, strategies as st

from conftest import ask, mock, until
from sagellm_control_plane.circuit import LONGEST, Circuit, CircuitState, Tolerance
from sagellm_control_plane.service import ControlPlaneService
from sagellm_protocol import EndEvent, EngineRecord, EngineState, ErrorCode, SageLLMError, StreamEvent
from sagellm_protocol.testing.mock_engine import MockEngine

Planes = Callable[..., ControlPlaneService]


def test_failures_in_a_row_are_too_much_and_a_success_between_them_is_not() -> None:
    circuit = Circuit(Tolerance(failures=3, error_rate=1.0))
    assert [circuit.failed(n) for n in (1, 2)] == [False, False]
    circuit.succeeded()
    assert [circuit.failed(n) for n in (3, 4, 5)] == [False, False, True]


def test_every_other_request_failing_is_too_much_once_enough_are_known() -> None:
    circuit = Circuit(Tolerance(failures=99, error_rate=0.5, window=8))
    told = []
    for number in range(4):
        circuit.succeeded()
        told.append(circuit.failed(number))
    assert told == [False, True, True, True]


def test_a_half_open_circuit_lets_one_through_and_closes_when_that_one_begins() -> None:
    circuit = Circuit(Tolerance())
    circuit.open()
    assert not circuit.admits
    circuit.half_open()
    assert circuit.admits
    circuit.sent(7)
    assert not circuit.admits
    circuit.began(8)
    assert circuit.state is CircuitState.HALF_OPEN
    circuit.began(7)
    assert circuit.state is CircuitState.CLOSED


def test_each_probe_that_fails_doubles_the_wait_up_to_a_bound() -> None:
    circuit = Circuit(Tolerance(open_s=1.0))
    waits = []
    for number in range(6):
        circuit.open()
        waits.append(circuit.open_s)
        circuit.half_open()
        circuit.sent(number)
        assert circuit.failed(number)
    assert waits == [1, 2, 4, LONGEST, LONGEST, LONGEST]


@given(st.lists(st.sampled_from(["send", "begin", "end", "fail", "leave", "tick"]), max_size=60))
def test_whatever_happens_at_most_one_request_tries_a_circuit_that_is_not_closed(moves: list[str]) -> None:
    circuit, sent = Circuit(Tolerance(failures=2)), 0
    for move in moves:
        if move == "send" and circuit.admits:
            sent += 1
            circuit.sent(sent)
        elif move == "begin":
            circuit.began(sent)
        elif move == "end":
            circuit.succeeded()
        elif move == "fail" and circuit.failed(sent):
            circuit.open()
        elif move == "leave":
            circuit.left(sent)
        elif move == "tick" and circuit.state is CircuitState.OPEN:
            circuit.half_open()
        if circuit.state is CircuitState.CLOSED:
            assert circuit.admits
        if circuit.state is CircuitState.OPEN:
            assert not circuit.admits
        if circuit.probe is not None:
            assert circuit.state is CircuitState.HALF_OPEN
            assert not circuit.admits


async def read(plane: ControlPlaneService, **fields: Any) -> list[StreamEvent]:
    return [event async for event in plane.submit(ask(**fields))]


def record(plane: ControlPlaneService, engine_id: str) -> EngineRecord:
    return next(one for one in plane.status_now().engines if one.info.engine_id == engine_id)


async def test_an_engine_that_fails_what_it_is_sent_is_left_alone_and_tried_again(planes: Planes) -> None:
    plane = planes(breaker_failures=3, breaker_open_s=0.05, routing="round_robin", poll_interval_s=0.01)
    await plane.start_engine(mock(fail_after_tokens=0), engine_id="bad")
    await plane.start_engine(mock(), engine_id="good")
    bad = plane.fleet.member("bad")
    while record(plane, "bad").circuit == "closed":
        assert isinstance((await read(plane))[-1], EndEvent)
    assert record(plane, "bad").circuit == "open"
    assert not plane.fleet.board.ready[bad.row]
    assert plane.status_now().circuits_opened == 1
    await until(lambda: record(plane, "bad").circuit == "half_open")
    assert isinstance(bad.engine, MockEngine)
    bad.engine._options = bad.engine._options.model_copy(update={"fail_after_tokens": None})
    while record(plane, "bad").circuit != "closed":
        assert isinstance((await read(plane))[-1], EndEvent)
    assert plane.fleet.board.ready[bad.row]


async def test_the_last_engine_of_a_model_is_never_shut_out(planes: Planes) -> None:
    plane = planes(breaker_failures=1, breaker_open_s=60.0, auto_restart=False)
    await plane.start_engine(mock(fail_after_tokens=0), engine_id="bad")
    for _ in range(5):
        await read(plane)
    assert record(plane, "bad").circuit == "closed"
    await plane.start_engine(mock(), engine_id="good")
    # The good one is preferred; the bad one is opened by whatever still reaches it.
    plane.breakers.failed(plane.fleet.member("bad"), 1, _failure())
    assert record(plane, "bad").circuit == "open"
    good = plane.fleet.member("good")
    assert isinstance(good.engine, MockEngine)
    good.engine.die("pulled the plug")
    await until(lambda: good.state is EngineState.ERROR)
    assert record(plane, "bad").circuit == "closed"


async def test_an_engine_on_trial_is_let_in_when_it_becomes_the_last(planes: Planes) -> None:
    plane = planes(breaker_failures=1, breaker_open_s=0.02, poll_interval_s=60.0)
    await plane.start_engine(mock(), engine_id="slow")
    await plane.start_engine(mock(), engine_id="other")
    slow = plane.fleet.member("slow")
    plane.breakers.failed(slow, 1, _failure())
    await until(lambda: record(plane, "slow").circuit == "half_open")
    await plane.drain_engine("other")
    assert record(plane, "slow").circuit == "closed"
    assert isinstance((await read(plane))[-1], EndEvent)


def _failure() -> SageLLMError:
    return SageLLMError(ErrorCode.ENGINE_FAILED, "told so by a test")
