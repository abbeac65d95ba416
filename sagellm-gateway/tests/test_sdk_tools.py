"""Tool calls and reasoning as the official client of OpenAI sees them, over an engine that says what it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import openai
import pytest

from live import WAIT_S, Live, live
from planes import SoloPlane
from sagellm_protocol import (
    ChoiceEnd,
    DeltaEvent,
    EndEvent,
    FinishReason,
    Request,
    StartEvent,
    StreamEvent,
    ToolCallDelta,
    Usage,
)
from sagellm_protocol.testing import ScriptedEngine

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "time")
]
ASKED: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "Oslo?"}], "tools": TOOLS}
USAGE = Usage(prompt_tokens=3, completion_tokens=9, reasoning_tokens=4)
NASTY = '{"city": "Os\\"lo}\\u00e9</tool_call> 😀"}'


def delta(*calls: ToolCallDelta, **fields: Any) -> DeltaEvent:
    return DeltaEvent(request_id="r", tool_calls=calls, **fields)


def script(request: Request) -> Sequence[StreamEvent]:
    """Reasoning, some text, and two calls, the first of them a character at a time."""
    return [
        StartEvent(request_id="r", prompt_tokens=3),
        delta(reasoning="They want "),
        delta(reasoning="weather."),
        delta(text="One moment."),
        delta(ToolCallDelta(index=0, id="call_a", name="weather")),
        *(delta(ToolCallDelta(index=0, arguments=character)) for character in NASTY),
        delta(
            ToolCallDelta(index=1, id="call_b", name="time", arguments='{"city": '),
            ToolCallDelta(index=1, arguments='"Oslo"}'),
        ),
        EndEvent(
            request_id="r",
            choices=(ChoiceEnd(index=0, finish_reason=FinishReason.TOOL_CALLS),),
            usage=USAGE,
        ),
    ]


@pytest.fixture(scope="module")
def gateway() -> Iterator[Live]:
    with live(lambda: SoloPlane(ScriptedEngine(script))) as found:
        yield found


@pytest.fixture
def client(gateway: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", timeout=WAIT_S, max_retries=0) as client:
        yield client


def test_calls_and_reasoning_come_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASKED)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "One moment."
    assert choice.message.model_extra is not None
    assert choice.message.model_extra["reasoning_content"] == "They want weather."
    assert [(call.id, call.type, call.function.name, call.function.arguments) for call in _calls(choice.message)] == [
        ("call_a", "function", "weather", NASTY),
        ("call_b", "function", "time", '{"city": "Oslo"}'),
    ]
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 4


def _calls(message: Any) -> list[Any]:
    return list(message.tool_calls or ())


def test_calls_are_streamed_in_the_pieces_of_openai(client: openai.OpenAI) -> None:
    pieces: list[dict[str, Any]] = []
    finishes = []
    for chunk in client.chat.completions.create(**ASKED, stream=True):
        [choice] = chunk.choices
        pieces += [piece.model_dump(exclude_unset=True) for piece in choice.delta.tool_calls or ()]
        finishes.append(choice.finish_reason)
    assert pieces[0] == {
        "index": 0,
        "id": "call_a",
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    assert all(
        set(piece) == {"index", "function"} and set(piece["function"]) == {"arguments"} for piece in pieces[1:-2]
    )
    assert "".join(piece["function"]["arguments"] for piece in pieces if piece["index"] == 0) == NASTY
    assert "".join(piece["function"]["arguments"] for piece in pieces if piece["index"] == 1) == '{"city": "Oslo"}'
    assert finishes[-1] == "tool_calls"
    assert set(finishes[:-1]) == {None}


def test_the_clients_own_accumulator_puts_a_stream_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**ASKED) as stream:
        for _ in stream:
            pass
        [choice] = stream.get_final_completion().choices
    assert choice.message.content == "One moment."
    assert [call.function.parsed_arguments for call in _calls(choice.message)] == [
        json.loads(NASTY),
        {"city": "Oslo"},
    ]


def test_an_answer_with_calls_can_be_sent_back_with_what_came_of_them(client: openai.OpenAI, gateway: Live) -> None:
    message = client.chat.completions.create(**ASKED).choices[0].message
    results: list[Any] = [{"role": "tool", "tool_call_id": call.id, "content": "sun"} for call in _calls(message)]
    client.chat.completions.create(**{**ASKED, "messages": [*ASKED["messages"], message, *results]})
    _, assistant, *tools = gateway.plane.engine.requests[-1].messages
    first = assistant.tool_calls[0]
    assert (first.id, first.name, first.arguments) == ("call_a", "weather", NASTY)
    assert assistant.reasoning == "They want weather."
    assert [(tool.tool_call_id, tool.text) for tool in tools] == [("call_a", "sun"), ("call_b", "sun")]


def test_what_is_asked_of_calls_reaches_the_engine(client: openai.OpenAI, gateway: Live) -> None:
    client.chat.completions.create(**ASKED, tool_choice="none", parallel_tool_calls=False, reasoning_effort="low")
    asked = gateway.plane.engine.requests[-1]
    assert (asked.tool_choice, asked.parallel_tool_calls, asked.reasoning_effort) == ("none", False, "low")
    assert [tool.name for tool in asked.tools] == ["weather", "time"]
