from __future__ import annotations

import pytest

from sagellm_protocol import (
    ChoiceEnd,
    DeltaEvent,
    EndEvent,
    ErrorCode,
    ErrorEvent,
    FinishReason,
    Request,
    SageLLMError,
    StartEvent,
    StreamEvent,
    Timestamps,
    ToolCallDelta,
    Usage,
)
from sagellm_protocol.testing import FakeControlPlane, ScriptedEngine, check_stream, read_all

REQUEST = Request(request_id="r", model="scripted", prompt="x", sampling={"max_tokens": 3, "stop": ("!",)})
START = StartEvent(request_id="r", prompt_tokens=2)
ERROR = ErrorEvent(request_id="r", error=SageLLMError(ErrorCode.INTERNAL, "broke").info())


def delta(*tokens: int, **fields) -> DeltaEvent:
    return DeltaEvent(**{"request_id": "r", "token_ids": tokens, "text": "a" * len(tokens), **fields})


def end(completion: int = 2, **fields) -> EndEvent:
    return EndEvent(
        **{
            "request_id": "r",
            "choices": (ChoiceEnd(index=0, finish_reason=FinishReason.STOP),),
            "usage": Usage(prompt_tokens=2, completion_tokens=completion),
            **fields,
        }
    )


@pytest.mark.parametrize(
    "events",
    [
        [ERROR],
        [START, ERROR],
        [START, delta(1), ERROR],
        [START, delta(1), delta(2), end()],
        [START, delta(text="a"), end(9)],
    ],
    ids=["refused", "failed", "failed midway", "completed", "tokens unknown"],
)
def test_a_good_stream_passes_and_yields_what_closed_it(events: list[StreamEvent]) -> None:
    assert check_stream(events, REQUEST) is events[-1]


STOPPED = (ChoiceEnd(index=0, finish_reason=FinishReason.STOP, stop_reason="!"),)

BROKEN = {
    "empty": ([], "is empty"),
    "no terminal event": ([START, delta(1)], "without a terminal"),
    "two terminal events": ([START, end(0), end(0)], "something follows"),
    "an event after the end": ([START, ERROR, delta(1), ERROR], "something follows"),
    "no start": ([delta(1), end(1)], "a start"),
    "two starts": ([START, START, end(0)], "a start"),
    "ended without a start": ([end(0)], "never started"),
    "ids mixed": ([START, delta(1, request_id="other"), end(1)], "request ids"),
    "another request's": ([ERROR.model_copy(update={"request_id": "q"})], "request ids"),
    "a choice too many": ([START, delta(1, index=1), end(1)], "choice 1 of n=1"),
    "a choice missing": ([START, end(0, choices=())], "not 0 to 0"),
    "tokens not counted": ([START, delta(1), delta(2), end(3)], "usage counts 3"),
    "more than max_tokens": ([START, delta(1, 2, 3, 4), end(4)], "max_tokens=3"),
    "prompts disagree": ([START, end(0, usage=Usage(prompt_tokens=9))], "disagree"),
    "more cached than there is": ([START, end(0, usage=Usage(prompt_tokens=2, cached_tokens=3))], "more tokens cached"),
    "time runs backwards": ([START, end(0, timestamps=Timestamps(queued=2.0, finished=1.0))], "out of order"),
    "a call without a name": ([START, delta(tool_calls=(ToolCallDelta(index=0),)), end(0)], "lacks its id or name"),
    "log-probabilities unasked": ([START, delta(logprobs=()), end(0)], "nobody asked"),
    "stop string left in": ([START, delta(1, text="a!"), end(1, choices=STOPPED)], "after stopping at '!'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_stream_is_caught(name: str) -> None:
    events, says = BROKEN[name]
    with pytest.raises(AssertionError, match=says):
        check_stream(events, REQUEST)


async def test_a_script_is_played_under_the_requests_id() -> None:
    engine = ScriptedEngine(lambda request: [START, delta(1), delta(2), end()])
    plane = FakeControlPlane(engine)
    await plane.start()
    asked = REQUEST.model_copy(update={"request_id": "mine"})
    events = await read_all(plane.submit(asked))
    check_stream(events, asked)
    assert [request.prompt for request in engine.requests] == ["x"]
    assert engine.requests[0].request_id != "mine"
    assert engine.aborted == []
    await plane.stop()


async def test_a_script_notes_that_its_reader_left() -> None:
    engine = ScriptedEngine(lambda request: [START, delta(1), delta(2), end()])
    stream = engine.generate(REQUEST)
    await anext(stream)
    await stream.aclose()
    assert engine.aborted == ["r"]
