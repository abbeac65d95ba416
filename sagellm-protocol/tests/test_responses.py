from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from sagellm_protocol import (
    ChoiceEnd,
    DeltaEvent,
    EndEvent,
    ErrorCode,
    ErrorEvent,
    FinishReason,
    Metrics,
    PositionLogprobs,
    ResponseBuilder,
    SageLLMError,
    StartEvent,
    StreamEvent,
    ToolCall,
    ToolCallDelta,
    Usage,
    collect,
)

USAGE = Usage(prompt_tokens=3, completion_tokens=4)
STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def delta(**fields) -> DeltaEvent:
    return DeltaEvent(request_id="r", **fields)


def end(*choices: ChoiceEnd) -> EndEvent:
    return EndEvent(request_id="r", choices=choices, usage=USAGE, metrics=Metrics(ttft_ms=5.0))


def build(*events: StreamEvent):
    builder = ResponseBuilder("m", "trace")
    for event in (StartEvent(request_id="r", prompt_tokens=3), *events):
        builder.add(event)
    return builder.response()


def test_choices_are_put_together_each_on_its_own() -> None:
    response = build(
        delta(index=1, text="b", token_ids=(4,)),
        delta(index=0, text="a", token_ids=(1, 2)),
        delta(index=1, text="c", token_ids=(5,)),
        end(ChoiceEnd(index=0, finish_reason=STOP, stop_reason="."), ChoiceEnd(index=1, finish_reason=LENGTH)),
    )
    assert [(output.text, output.token_ids, output.finish_reason) for output in response.outputs] == [
        ("a", (1, 2), STOP),
        ("bc", (4, 5), LENGTH),
    ]
    assert (response.output_text, response.output_tokens, response.finish_reason) == ("a", (1, 2), STOP)
    assert response.outputs[0].stop_reason == "."
    assert (response.request_id, response.trace_id, response.model) == ("r", "trace", "m")
    assert (response.usage, response.metrics.ttft_ms) == (USAGE, 5.0)


def test_tool_calls_are_put_together_from_their_pieces() -> None:
    response = build(
        delta(tool_calls=(ToolCallDelta(index=0, id="a", name="f", arguments='{"x"'),)),
        delta(tool_calls=(ToolCallDelta(index=1, id="b", name="g"), ToolCallDelta(index=0, arguments=": 1}"))),
        delta(tool_calls=(ToolCallDelta(index=1, arguments="{}"),)),
        end(ChoiceEnd(index=0, finish_reason=FinishReason.TOOL_CALLS)),
    )
    assert response.outputs[0].tool_calls == (
        ToolCall(id="a", name="f", arguments='{"x": 1}'),
        ToolCall(id="b", name="g", arguments="{}"),
    )


def test_reasoning_and_text_are_kept_apart() -> None:
    response = build(
        delta(reasoning="h"), delta(reasoning="m"), delta(text="yes"), end(ChoiceEnd(index=0, finish_reason=STOP))
    )
    assert (response.outputs[0].reasoning, response.output_text) == ("hm", "yes")


def test_logprobs_are_none_unless_some_came() -> None:
    position = PositionLogprobs(token_id=1, token="a", logprob=-1.0)
    closing = end(ChoiceEnd(index=0, finish_reason=STOP))
    assert build(delta(text="a"), closing).outputs[0].logprobs is None
    assert build(delta(logprobs=()), closing).outputs[0].logprobs == ()
    assert build(delta(logprobs=(position,)), delta(logprobs=(position,)), closing).outputs[0].logprobs == (
        position,
        position,
    )


def test_a_choice_that_said_nothing_is_there() -> None:
    response = build(end(ChoiceEnd(index=0, finish_reason=STOP), ChoiceEnd(index=1, finish_reason=STOP)))
    assert [output.text for output in response.outputs] == ["", ""]


async def stream(events: Sequence[StreamEvent]) -> AsyncIterator[StreamEvent]:
    for event in events:
        yield event


async def test_a_stream_that_ends_in_an_error_raises_it() -> None:
    error = SageLLMError(ErrorCode.QUEUE_FULL, "full", retry_after_s=2.0)
    with pytest.raises(SageLLMError, match="full") as raised:
        await collect(stream([ErrorEvent(request_id="r", error=error.info())]), "m")
    assert raised.value.info() == error.info()


async def test_a_stream_that_was_cut_off_is_no_answer() -> None:
    with pytest.raises(SageLLMError, match="before the answer was complete") as raised:
        await collect(stream([StartEvent(request_id="r", prompt_tokens=1), delta(text="half")]), "m")
    assert raised.value.code is ErrorCode.ENGINE_FAILED
