"""Tool calls by the embedded model, through the whole stack to OpenAI's client.

The model is too small to call tools of its own accord, but it repeats a pattern: the template puts before it what calls
look like, and it writes another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from conftest import Server, start, stop

TEMPLATE = "{% for tool in tools or [] %}{% endfor %}{% for message in messages %}{{ message.content }}{% endfor %}"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
ARGUMENTS = '{"city": "Oslo"}'
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    server: Server = start(
        *("serve", "smollm2-135m", "--dtype", "float32", "--max-num-seqs", "2", "--max-model-len", "512"),
        *("--chat-template", TEMPLATE, "--tool-parser", "hermes"),
    )
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=100) as client:

        def create(**fields: Any) -> Any:
            tool = {"type": "function", "function": {"name": "weather"}}
            asked = {"tools": [tool], "temperature": 0, "max_tokens": 40, **fields}
            return client.chat.completions.create(
                model=server.model, messages=[{"role": "user", "content": CALL * 4}], **asked
            )

        yield create
    assert stop(server) == 0


def test_a_model_calls_a_tool(ask: Ask) -> None:
    [choice] = ask(parallel_tool_calls=False).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", ARGUMENTS)


def test_a_call_is_streamed_while_it_is_written(ask: Ask) -> None:
    pieces, finishes = [], []
    for chunk in ask(parallel_tool_calls=False, stream=True):
        [choice] = chunk.choices
        pieces += choice.delta.tool_calls or []
        finishes.append(choice.finish_reason)
    assert pieces[0].function.name == "weather"
    assert len(pieces) > 2
    assert "".join(piece.function.arguments for piece in pieces) == ARGUMENTS
    assert finishes[-1] == "tool_calls"


def test_without_leave_to_call_the_same_text_is_content(ask: Ask) -> None:
    [choice] = ask(tool_choice="none").choices
    assert choice.message.content.startswith(CALL)
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "length"


def test_an_effort_that_the_template_does_not_read_is_refused_by_name(ask: Ask) -> None:
    with pytest.raises(openai.BadRequestError) as effort:
        ask(reasoning_effort="low")
    assert effort.value.param == "reasoning_effort"
    with pytest.raises(openai.BadRequestError) as template:
        ask(extra_body={"chat_template": "{{ messages }}"})
    assert template.value.param == "chat_template"
