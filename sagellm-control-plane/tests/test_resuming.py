"""Streams that go on on another engine: no token repeated, none lost, and refused where that cannot be told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from conftest import ask, mock
from sagellm_control_plane.resuming import Diverged, Given, Seam, repeatable
from sagellm_control_plane.service import ControlPlaneService
from sagellm_protocol import (
    DeltaEvent,
    EndEvent,
    ErrorCode,
    ErrorEvent,
    Request,
    SamplingParams,
    StartEvent,
    StreamEvent,
    ToolCallDelta,
)
from sagellm_protocol.testing import check_stream
from sagellm_protocol.testing.mock.text import answer, encode

Planes = Callable[..., ControlPlaneService]


def stream(text: str, cuts: list[int]) -> list[DeltaEvent]:
    """A text of one token a character, in pieces."""
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    pieces = [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [
        DeltaEvent(request_id="r", text=piece, token_ids=tuple(map(ord, piece)), reasoning=piece.upper())
        for piece in pieces
    ]


cuts = st.lists(st.integers(0, 30), max_size=6)


@given(st.text("ab", max_size=30), cuts, cuts, st.integers(0, 6))
def test_however_both_streams_are_cut_the_caller_reads_one(
    text: str, first: list[int], second: list[int], broke_after: int
) -> None:
    given_, read = Given(), []
    for event in stream(text, first)[:broke_after]:
        given_.note(event)
        read.append(event)
    replay = given_.again()
    read += [new for event in stream(text, second) if (new := replay.rest(event)) is not None]
    replay.check_complete()
    assert "".join(event.text for event in read) == text
    assert "".join(event.reasoning for event in read) == text.upper()
    assert [token for event in read for token in event.token_ids] == list(map(ord, text))


def test_logprobs_stay_with_their_tokens_and_calls_keep_their_first_name() -> None:
    given_ = Given()
    call = ToolCallDelta(index=0, id="a", name="f", arguments='{"x"')
    given_.note(DeltaEvent(request_id="r", token_ids=(1,), tool_calls=(call,)))
    replay = given_.again()
    again = ToolCallDelta(index=0, id="b", name="f", arguments='{"x": 1}')
    new = replay.rest(DeltaEvent(request_id="r", token_ids=(1, 2), tool_calls=(again,), logprobs=()))
    assert new is not None
    assert new.token_ids == (2,)
    assert new.tool_calls == (ToolCallDelta(index=0, arguments=": 1}"),)


def test_another_answer_and_a_shorter_one_are_found_out() -> None:
    given_ = Given()
    given_.note(DeltaEvent(request_id="r", text="abc", token_ids=(1, 2, 3)))
    with pytest.raises(Diverged):
        given_.again().rest(DeltaEvent(request_id="r", text="ab", token_ids=(1, 4)))
    replay = given_.again()
    assert replay.rest(DeltaEvent(request_id="r", text="ab", token_ids=(1, 2))) is None
    with pytest.raises(Diverged):
        replay.check_complete()


def test_only_answers_that_are_functions_of_their_request_are_repeatable() -> None:
    def of(**sampling: Any) -> Request:
        return Request(request_id="r", model="m", prompt="p", sampling=SamplingParams(**sampling))

    assert repeatable(of(temperature=0))
    assert repeatable(of(temperature=0.7, seed=5))
    assert not repeatable(of(temperature=0.7))
    assert not repeatable(of(beam_width=2))


def test_a_caller_is_told_once_that_its_request_was_taken_in() -> None:
    seam, start = Seam(resumable=False), StartEvent(request_id="r", prompt_tokens=1)
    assert seam.told(start) is start
    seam.begin_again()
    assert seam.told(start) is None


GREEDY = {"sampling": SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)}
DRAWN = {"sampling": SamplingParams(max_tokens=60, ignore_eos=True)}


async def read(plane: ControlPlaneService, **fields: Any) -> list[StreamEvent]:
    return [event async for event in plane.submit(ask(**fields))]


def text_of(events: list[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, DeltaEvent))


async def pair(plane: ControlPlaneService, after: int = 9, **second: Any) -> None:
    await plane.start_engine(mock(fail_after_tokens=after), engine_id="first")
    plane.fleet.member("first").most_sequences = 1
    await plane.start_engine(mock(**second), engine_id="second")


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.9, "seed": 3}])
async def test_a_stream_whose_engine_fails_goes_on_on_another_without_a_seam(
    planes: Planes, sampling: dict[str, Any]
) -> None:
    plane = planes(routing="round_robin", breaker_failures=99, breaker_error_rate=1.0)
    await pair(plane)
    whole = (answer(encode("hello")) * 9)[:60]
    fields = {"sampling": SamplingParams(max_tokens=60, ignore_eos=True, **sampling)}
    for _ in range(4):
        events = await read(plane, **fields)
        check_stream(events)
        assert isinstance(events[-1], EndEvent)
        assert text_of(events) == whole
        assert events[-1].usage.completion_tokens == 60
    status = plane.status_now()
    assert status.resumed >= 1
    assert status.retried == 0


async def test_a_stream_that_was_drawn_without_a_seed_fails_rather_than_change_its_mind(planes: Planes) -> None:
    plane = planes()
    await plane.start_engine(mock(fail_after_tokens=9), engine_id="first")
    [*_, last] = await read(plane, **DRAWN)
    await plane.start_engine(mock(), engine_id="second")
    assert isinstance(last, ErrorEvent)
    assert last.error.code is ErrorCode.ENGINE_FAILED
    assert plane.status_now().resumed == 0


async def test_an_operator_may_do_without(planes: Planes) -> None:
    plane = planes(resume=False, routing="round_robin")
    await pair(plane)
    endings = {type((await read(plane, **GREEDY))[-1]) for _ in range(2)}
    assert endings == {EndEvent, ErrorEvent}


async def test_a_stream_does_not_go_on_with_another_model_of_the_same_name(planes: Planes) -> None:
    plane = planes(routing="round_robin")
    await plane.start_engine(mock(fail_after_tokens=9), engine_id="first")
    other = mock("other").model_copy(update={"served_names": ("m",)})
    await plane.start_engine(other, engine_id="second")
    endings = {type((await read(plane, **GREEDY))[-1]) for _ in range(2)}
    assert endings == {EndEvent, ErrorEvent}
    assert plane.status_now().resumed == 0


async def test_a_second_answer_that_differs_ends_the_stream_and_says_so(planes: Planes) -> None:
    plane = planes(routing="round_robin")
    await pair(plane, text="another answer altogether")
    failed = [events for _ in range(2) if isinstance((events := await read(plane, **GREEDY))[-1], ErrorEvent)]
    [events] = failed
    assert "another engine gave another answer" in str(events[-1])
    assert text_of(events) == answer(encode("hello"))[:9]


async def test_a_stream_is_moved_off_an_engine_that_is_stopped(planes: Planes) -> None:
    plane = planes(routing="round_robin")
    for name in "ab":
        await plane.start_engine(mock(itl_ms=1.0), engine_id=name)
    text, stopping = "", None
    async for event in plane.submit(ask(**GREEDY)):
        if isinstance(event, DeltaEvent):
            text += event.text
            if stopping is None and len(text) > 5:
                [busy] = [member.engine_id for member in plane.fleet if member.tickets]
                stopping = asyncio.create_task(plane.stop_engine(busy))
    assert stopping is not None
    await stopping
    assert text == (answer(encode("hello")) * 9)[:60]
    assert plane.status_now().resumed == 1
