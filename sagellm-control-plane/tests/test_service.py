"""The plane over mock engines: queueing, retrying, ending."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import anyio
import pytest

from conftest import ask, mock, until
from sagellm_control_plane.fleet import Launched, Member
from sagellm_control_plane.routing import ToldCost
from sagellm_control_plane.service import ControlPlaneService, create
from sagellm_protocol import (
    SLO,
    EmbedRequest,
    EndEvent,
    EngineHandle,
    EngineSpec,
    EngineState,
    ErrorCode,
    ErrorEvent,
    RequestEnding,
    SageLLMError,
    StartEvent,
    StreamEvent,
    collect,
)
from sagellm_protocol.testing.mock_engine import MockEngine

Planes = Callable[..., ControlPlaneService]
SLOW = {"itl_ms": 2.0}
PATIENCE_S = 20.0


async def read(plane: ControlPlaneService, request: object) -> list[StreamEvent]:
    return await asyncio.wait_for(_read(plane, request), PATIENCE_S)


async def _read(plane: ControlPlaneService, request: object) -> list[StreamEvent]:
    return [event async for event in plane.submit(request)]  # type: ignore[arg-type]


async def silence() -> None:
    await asyncio.Event().wait()


def code(events: list[StreamEvent]) -> ErrorCode:
    assert isinstance(events[-1], ErrorEvent), events
    return events[-1].error.code


async def test_two_clients_may_use_one_id_and_cancelling_it_ends_both(planes: Planes) -> None:
    plane = planes()
    await plane.start_engine(mock(**SLOW))
    same = [ask(max_tokens=4, request_id="same") for _ in range(2)]
    both = await asyncio.gather(*(read(plane, request) for request in same))
    assert all(isinstance(events[-1], EndEvent) for events in both)
    tasks = [asyncio.create_task(read(plane, ask(max_tokens=4000, request_id="same"))) for _ in range(2)]
    await until(lambda: plane.dispatcher.placed == 2)
    assert await plane.cancel("same")
    assert [code(await task) for task in tasks] == [ErrorCode.CANCELLED] * 2
    assert plane.ledger.ended[RequestEnding.CANCELLED] == 2


async def test_a_burst_is_spread_over_engines(planes: Planes) -> None:
    plane = planes()
    for name in "abcd":
        await plane.start_engine(mock(**SLOW), engine_id=name)
    tasks = [asyncio.create_task(read(plane, ask(max_tokens=200))) for _ in range(32)]
    await until(lambda: plane.dispatcher.placed == 32)
    assert {member.load.sequences for member in plane.fleet} == {8}
    await plane.stop()
    assert {code(await task) for task in tasks} == {ErrorCode.CANCELLED}


async def test_a_full_queue_refuses_with_a_time_to_come_back(planes: Planes) -> None:
    plane = planes(max_queued=2, slack=0.0)
    await plane.start_engine(mock(max_num_seqs=1, **SLOW))
    tasks = [asyncio.create_task(read(plane, ask(max_tokens=2000))) for _ in range(3)]
    await until(lambda: plane.status_now().queued == 2)
    refused = (await read(plane, ask()))[-1]
    assert isinstance(refused, ErrorEvent)
    assert refused.error.code is ErrorCode.QUEUE_FULL
    assert refused.error.retry_after_s is not None
    assert refused.error.retry_after_s >= 1
    assert plane.status_now().refused_early == 1
    await plane.stop()
    await asyncio.gather(*tasks)


async def test_the_queue_bound_holds_while_many_arrive_at_once(planes: Planes) -> None:
    plane = planes(max_queued=3, slack=0.0)
    await plane.start_engine(mock(max_num_seqs=2, **SLOW))
    tasks = [asyncio.create_task(read(plane, ask(max_tokens=20))) for _ in range(40)]
    results = await asyncio.gather(*tasks)
    assert sum(isinstance(events[-1], EndEvent) for events in results) == 5
    assert plane.status_now().refused_early == 35


async def test_a_wait_that_is_too_long_expires(planes: Planes) -> None:
    plane = planes(queue_timeout_s=0.05, slack=0.0)
    await plane.start_engine(mock(max_num_seqs=1, **SLOW))
    running = asyncio.create_task(read(plane, ask(max_tokens=3000)))
    await until(lambda: plane.dispatcher.placed == 1)
    assert code(await read(plane, ask())) is ErrorCode.DEADLINE_EXCEEDED
    assert plane.ledger.ended[RequestEnding.EXPIRED] == 1
    await plane.stop()
    await running


async def test_a_deadline_counts_in_the_queue_too(planes: Planes) -> None:
    plane = planes(slack=0.0)
    await plane.start_engine(mock(max_num_seqs=1, **SLOW))
    running = asyncio.create_task(read(plane, ask(max_tokens=3000)))
    await until(lambda: plane.dispatcher.placed == 1)
    assert code(await read(plane, ask(slo=SLO(deadline_ms=40)))) is ErrorCode.DEADLINE_EXCEEDED
    await plane.stop()
    await running


async def test_a_waiting_request_can_be_cancelled_and_others_move_up(planes: Planes) -> None:
    plane = planes(slack=0.0)
    await plane.start_engine(mock(max_num_seqs=1, **SLOW))
    first = asyncio.create_task(read(plane, ask(max_tokens=30)))
    await until(lambda: plane.dispatcher.placed == 1)
    second = asyncio.create_task(read(plane, ask(request_id="second")))
    third = asyncio.create_task(read(plane, ask()))
    await until(lambda: len(plane.dispatcher.queue) == 2)
    assert await plane.cancel("second")
    assert code(await second) is ErrorCode.CANCELLED
    assert isinstance((await first)[-1], EndEvent)
    assert isinstance((await third)[-1], EndEvent)


async def test_priority_decides_who_is_next(planes: Planes) -> None:
    plane = planes(policy="priority", slack=0.0)
    await plane.start_engine(mock(max_num_seqs=1, **SLOW))
    ended: list[str] = []

    async def run(name: str, priority: int) -> None:
        await read(plane, ask(max_tokens=10, request_id=name, priority=priority))
        ended.append(name)

    tasks = [asyncio.create_task(run("first", 0))]
    await until(lambda: plane.dispatcher.placed == 1)
    for name, priority in (("late", 1), ("usual", 0), ("urgent", -1)):
        tasks.append(asyncio.create_task(run(name, priority)))
    await until(lambda: len(plane.dispatcher.queue) == 3)
    await asyncio.gather(*tasks)
    assert ended == ["first", "urgent", "usual", "late"]


async def test_a_request_that_fails_before_its_first_token_is_answered_by_another_engine(planes: Planes) -> None:
    plane = planes()
    await plane.start_engine(mock(fail_after_tokens=0), engine_id="bad")
    await plane.start_engine(mock(), engine_id="good")
    for _ in range(8):
        events = await read(plane, ask())
        assert sum(isinstance(event, StartEvent) for event in events) == 1
        assert isinstance(events[-1], EndEvent)
    assert plane.ledger.ended[RequestEnding.COMPLETED] == 8


async def test_the_end_tells_the_share_of_attempts_that_failed(planes: Planes) -> None:
    plane = planes(routing="round_robin")
    await plane.start_engine(mock(fail_after_tokens=0), engine_id="bad")
    await plane.start_engine(mock(), engine_id="good")
    last = (await read(plane, ask()))[-1]
    assert isinstance(last, EndEvent)
    assert last.metrics.error_rate == 0.5


async def test_a_request_that_fails_after_its_first_token_is_not_begun_again(planes: Planes) -> None:
    plane = planes()
    await plane.start_engine(mock(fail_after_tokens=3), engine_id="bad")
    await plane.start_engine(mock(fail_after_tokens=3), engine_id="worse")
    events = await read(plane, ask())
    assert code(events) is ErrorCode.ENGINE_FAILED
    assert plane.ledger.ended[RequestEnding.FAILED] == 1


async def test_when_every_engine_fails_the_last_reason_is_told(planes: Planes) -> None:
    plane = planes()
    for name in "ab":
        await plane.start_engine(mock(fail_after_tokens=0), engine_id=name)
    assert code(await read(plane, ask())) is ErrorCode.ENGINE_FAILED


async def test_a_refusal_is_not_tried_elsewhere(planes: Planes) -> None:
    plane = planes()
    for name in "ab":
        await plane.start_engine(mock(refuse="invalid_request"), engine_id=name)
    assert code(await read(plane, ask())) is ErrorCode.INVALID_REQUEST
    assert plane.ledger.ended[RequestEnding.REFUSED] == 1


async def test_embeddings_are_retried_as_well(planes: Planes) -> None:
    plane = planes(routing="round_robin")
    await plane.start_engine(mock(refuse="unavailable"), engine_id="bad")
    await plane.start_engine(mock(), engine_id="good")
    response = await plane.embed(EmbedRequest(request_id="e", model="m", inputs=("one",)))
    assert len(response.vectors) == 1


async def test_an_engine_that_died_is_started_again(planes: Planes) -> None:
    plane = planes()
    await plane.start_engine(mock(), engine_id="e")
    member = plane.fleet.member("e")
    first = member.engine
    assert isinstance(first, MockEngine)
    first.die("pulled the plug")
    await until(lambda: member.restarts == 1 and member.ready)
    assert member.engine is not first
    assert isinstance((await read(plane, ask()))[-1], EndEvent)


async def test_an_engine_that_keeps_dying_is_given_up_with_its_reason(planes: Planes) -> None:
    plane = planes(max_restarts=2)
    await plane.start_engine(mock(), engine_id="e")
    member = plane.fleet.member("e")
    for _ in range(3):
        await until(lambda: member.ready)
        assert isinstance(member.engine, MockEngine)
        member.engine.die("pulled the plug")
        await until(lambda: not member.ready)
    await until(lambda: member.state is EngineState.ERROR and not member.restarting)
    status = await plane.status()
    assert not status.ready
    assert "pulled the plug" in (status.reason or "")
    assert code(await read(plane, ask())) is ErrorCode.UNAVAILABLE


async def test_requests_wait_while_their_only_engine_is_started_again(planes: Planes) -> None:
    plane = planes(restart_backoff_s=0.1, max_queued=2)
    await plane.start_engine(mock(), engine_id="e")
    member = plane.fleet.member("e")
    assert isinstance(member.engine, MockEngine)
    member.engine.die("pulled the plug")
    await until(lambda: member.restarting)
    waiting = [asyncio.create_task(read(plane, ask())) for _ in range(2)]
    await until(lambda: plane.status_now().queued == 2)
    assert not plane.status_now().ready
    assert code(await read(plane, ask())) is ErrorCode.QUEUE_FULL
    assert [type((await task)[-1]) for task in waiting] == [EndEvent, EndEvent]
    assert member.restarts == 1


async def test_requests_that_wait_for_a_restart_are_told_when_it_fails(planes: Planes) -> None:
    plane = planes(restart_backoff_s=0.1, max_restarts=1)
    await plane.start_engine(mock(), engine_id="e")
    member = plane.fleet.member("e")
    assert isinstance(member.engine, MockEngine)
    assert isinstance(member.origin, Launched)
    member.origin = replace(member.origin, spec=mock(fail_start="the disk is gone"))
    member.engine.die("pulled the plug")
    await until(lambda: member.restarting)
    events = await read(plane, ask())
    assert code(events) is ErrorCode.UNAVAILABLE
    assert "the disk is gone" in str(events[-1])


async def test_an_engine_whose_death_nobody_noticed_yet_costs_no_request(planes: Planes) -> None:
    plane = planes(poll_interval_s=60.0)
    await plane.start_engine(mock(), engine_id="e")
    member = plane.fleet.member("e")
    await until(lambda: member.stats is not None)
    assert isinstance(member.engine, MockEngine)
    member.engine.die("pulled the plug")
    assert isinstance((await read(plane, ask()))[-1], EndEvent)
    assert member.restarts == 1


async def test_an_engine_that_fell_silent_has_no_figures(planes: Planes) -> None:
    plane = planes(auto_restart=False, poll_timeout_s=0.05)
    await plane.start_engine(mock(), engine_id="e")
    member = plane.fleet.member("e")
    await until(lambda: member.stats is not None)
    assert isinstance(member.engine, MockEngine)
    member.engine.stats = silence  # type: ignore[method-assign,assignment]
    await until(lambda: member.state is EngineState.ERROR)
    [record] = plane.status_now().engines
    assert record.stats is None


async def test_a_drained_engine_that_dies_is_not_started_again(planes: Planes) -> None:
    plane = planes()
    await plane.start_engine(mock(), engine_id="e")
    member = plane.fleet.member("e")
    await plane.drain_engine("e")
    assert isinstance(member.engine, MockEngine)
    member.engine.die("pulled the plug")
    await until(lambda: member.state is EngineState.ERROR)
    assert not member.restarting
    assert member.restarts == 0


class Falling:
    """A launcher with a defect; what it begins takes a while to take down."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.took_down = False
        self.begun = asyncio.Event()

    async def start(self, spec: EngineSpec, engine_id: str) -> EngineHandle:
        self.begun.set()
        if self._error is not None:
            raise self._error
        try:
            await asyncio.Event().wait()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(20):
                    await asyncio.sleep(0)
                self.took_down = True
        raise AssertionError


async def test_a_launcher_with_a_defect_leaves_an_engine_that_failed_rather_than_one_that_starts_for_ever(
    planes: Planes,
) -> None:
    plane = planes(max_restarts=1)
    member = Member("e", Launched("falling", mock(), Falling(ZeroDivisionError("by nought"))), ("m",))
    plane.crew.expect(member)
    await until(lambda: member.state is EngineState.ERROR and not member.restarting)
    events = await read(plane, ask())
    assert code(events) is ErrorCode.UNAVAILABLE
    assert "ZeroDivisionError: by nought" in str(events[-1])


async def test_a_plane_that_stops_lets_a_start_under_way_clean_up(planes: Planes) -> None:
    plane, launcher = planes(), Falling()
    plane.crew.expect(Member("e", Launched("falling", mock(), launcher), ("m",)))
    await asyncio.wait_for(launcher.begun.wait(), PATIENCE_S)
    await plane.stop()
    assert launcher.took_down


async def test_stopping_an_engine_that_is_being_taken_down_already_waits_for_that(planes: Planes) -> None:
    plane = planes()
    await plane.start_engine(mock(), engine_id="e")
    member = plane.fleet.member("e")
    engine, gone = member.engine, asyncio.Event()
    assert isinstance(engine, MockEngine)
    stop, stopping = engine.stop, asyncio.Event()

    async def slowly() -> None:
        stopping.set()
        for _ in range(20):
            await asyncio.sleep(0)
        await stop()
        gone.set()

    engine.stop = slowly  # type: ignore[method-assign]
    engine.die("pulled the plug")
    await asyncio.wait_for(stopping.wait(), PATIENCE_S)
    await plane.stop_engine("e")
    assert gone.is_set()


async def test_an_engine_that_hangs_is_found_out_and_what_it_had_goes_elsewhere(planes: Planes) -> None:
    plane = planes(auto_restart=False, poll_timeout_s=0.1)
    await plane.start_engine(mock(prefill_tokens_per_s=0.1), engine_id="stuck")
    task = asyncio.create_task(read(plane, ask()))
    await until(lambda: plane.dispatcher.placed == 1)
    await plane.start_engine(mock(), engine_id="good")
    engine = plane.fleet.member("stuck").engine
    assert isinstance(engine, MockEngine)
    engine.stats = silence  # type: ignore[method-assign,assignment]
    assert isinstance((await task)[-1], EndEvent)
    assert plane.fleet.member("stuck").state is EngineState.ERROR


async def test_stopping_an_engine_moves_what_has_not_begun(planes: Planes) -> None:
    plane = planes()
    await plane.start_engine(mock(prefill_tokens_per_s=0.1), engine_id="slow")
    task = asyncio.create_task(read(plane, ask()))
    await until(lambda: plane.dispatcher.placed == 1)
    await plane.start_engine(mock(), engine_id="quick")
    await plane.stop_engine("slow")
    assert isinstance((await task)[-1], EndEvent)


async def test_waiting_requests_are_told_when_their_last_engine_is_gone(planes: Planes) -> None:
    plane = planes(slack=0.0)
    await plane.start_engine(mock(max_num_seqs=1, **SLOW), engine_id="e")
    tasks = [asyncio.create_task(read(plane, ask(max_tokens=3000))) for _ in range(2)]
    await until(lambda: len(plane.dispatcher.queue) == 1)
    await plane.stop_engine("e")
    codes = {code(await task) for task in tasks}
    assert codes <= {ErrorCode.MODEL_NOT_FOUND, ErrorCode.UNAVAILABLE}


async def test_an_engine_stopped_while_it_starts_leaves_nothing(planes: Planes) -> None:
    plane = planes()
    starting = asyncio.create_task(plane.start_engine(mock(start_delay_s=60), engine_id="e"))
    await until(lambda: "e" in plane.fleet and plane.fleet.member("e").starting is not None)
    await plane.stop_engine("e")
    with pytest.raises(SageLLMError, match="stopped while it started"):
        await asyncio.wait_for(starting, PATIENCE_S)
    assert len(plane.fleet) == 0


async def test_requests_for_a_model_that_is_starting_are_told_so(planes: Planes) -> None:
    plane = planes()
    starting = asyncio.create_task(plane.start_engine(mock(start_delay_s=60), engine_id="e"))
    await until(lambda: "e" in plane.fleet)
    events = await read(plane, ask())
    assert code(events) is ErrorCode.UNAVAILABLE
    assert "STARTING" in str(events[-1])
    await plane.stop_engine("e")
    with pytest.raises(SageLLMError):
        await starting


async def test_a_longer_context_elsewhere_is_found(planes: Planes) -> None:
    plane = planes()
    for name, length in (("short", 64), ("long", 1024)):
        spec = mock().model_copy(update={"max_model_len": length})
        await plane.start_engine(spec, engine_id=name)
    for _ in range(6):
        response = await collect(plane.submit(ask(prompt="x" * 200, max_tokens=100)), "m")
        assert response.usage.total_tokens == 300


async def test_engines_of_one_name_that_read_prompts_differently_are_each_given_their_own(planes: Planes) -> None:
    plane = planes(routing="round_robin")
    for size in (4, 16):
        spec = mock().model_copy(update={"block_size": size})
        await plane.start_engine(spec, engine_id=f"b{size}")
    for _ in range(4):
        assert isinstance((await read(plane, ask(prompt="x" * 64)))[-1], EndEvent)


async def test_a_consumer_that_reads_nothing_holds_up_no_one(planes: Planes) -> None:
    plane = planes()
    await plane.start_engine(mock(**SLOW))
    stream = plane.submit(ask(max_tokens=5000, request_id="idle"))
    await anext(stream)
    assert await plane.cancel("idle")
    assert plane.status_now().in_flight == 0
    member = next(iter(plane.fleet))
    assert isinstance(member.engine, MockEngine)
    stats = await member.engine.stats()
    await until(lambda: member.load.sequences == 0)
    assert stats.state is EngineState.READY
    rest = [event async for event in stream]
    assert code(rest) is ErrorCode.CANCELLED


def test_settings_are_checked_and_unknown_ones_named() -> None:
    with pytest.raises(SageLLMError, match=r"made_up.*max_queued"):
        create(made_up=1)
    with pytest.raises(SageLLMError, match="max_attempts must be 1 or more"):
        create(max_attempts=0)
    with pytest.raises(SageLLMError, match=r"made-up.*least_load"):
        create(routing="made-up")


async def test_a_renderer_that_hangs_is_passed_over(planes: Planes) -> None:
    plane = planes()
    for name in "ab":
        await plane.start_engine(mock(), engine_id=name)

    async def hang(_: object) -> None:
        await asyncio.Event().wait()

    stuck = plane.fleet.member("a").engine
    assert isinstance(stuck, MockEngine)
    stuck.renderer.render = hang  # type: ignore[method-assign,assignment]
    results = await asyncio.gather(*(read(plane, ask()) for _ in range(6)))
    assert all(isinstance(events[-1], EndEvent) for events in results)


async def test_prefixes_are_followed_as_engines_tell_of_their_caches(
    planes: Callable[..., ControlPlaneService],
) -> None:
    plane = planes(routing="prefix_events")
    for name in "ab":
        await plane.start_engine(EngineSpec(engine="mock", model="m", block_size=4), engine_id=name)
    prompt = "a prompt long enough to fill some blocks of four, and then some"
    first = [event async for event in plane.submit(ask(prompt=prompt))]
    assert isinstance(first[-1], EndEvent)
    home = plane.ledger.outcomes.of()[-1].engine_id
    router = plane.dispatcher.scheduler.router
    assert isinstance(router, ToldCost)
    row = plane.fleet.member(home or "").row
    await until(lambda: row is not None and bool(vars(router)["_tells"][row]))
    for _ in range(6):
        assert isinstance([event async for event in plane.submit(ask(prompt=prompt))][-1], EndEvent)
    assert {outcome.engine_id for outcome in plane.ledger.outcomes.of()} == {home}
