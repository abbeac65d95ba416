"""Structured output and forced calls by the embedded model, through the whole stack to OpenAI's client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from conftest import Server, start, stop

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }}\n{% endfor %}"
    "{% for message in messages %}{{ message.content }}\n{% endfor %}"
)
TURNS: Any = [{"role": "user", "content": "A city and its country:"}]


class City(BaseModel):
    name: str = Field(max_length=20)
    size: Literal["small", "large"]
    districts: list[str] = Field(max_length=2)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = start(
        *("serve", "smollm2-135m", "--dtype", "float32", "--max-num-seqs", "4", "--max-model-len", "512"),
        *("--chat-template", TEMPLATE, "--tool-parser", "hermes"),
    )
    yield started
    assert stop(started) == 0


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=100) as made:
        yield made


def ask(client: openai.OpenAI, server: Server, **fields: Any) -> Any:
    asked = {"temperature": 0, "max_tokens": 200, **fields}
    return client.chat.completions.create(model=server.model, messages=TURNS, **asked)


def test_the_clients_own_parsing_gets_what_it_asked_for(client: openai.OpenAI, server: Server) -> None:
    answer = client.chat.completions.parse(
        model=server.model, messages=TURNS, response_format=City, temperature=0, max_tokens=200
    )
    [choice] = answer.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, City)


def test_streamed_it_is_the_same(client: openai.OpenAI, server: Server) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": City.model_json_schema(), "strict": True}}
    whole = ask(client, server, response_format=form).choices[0]
    pieces = [chunk.choices[0] for chunk in ask(client, server, response_format=form, stream=True)]
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.message.content
    assert pieces[-1].finish_reason == whole.finish_reason == "stop"
    City.model_validate_json(whole.message.content)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": r"[A-Z][a-z]{2,9}, \d{2}"}, r"[A-Z][a-z]{2,9}, \d{2}"),
        ({"guided_choice": ["Oslo", "Lima"]}, "Oslo|Lima"),
        ({"guided_grammar": 'root ::= "(" [a-z] [a-z] [a-z] ")" | "none"'}, r"\([a-z]{3}\)|none"),
        ({"guided_json": {"enum": ["x", 7]}}, '"x"|7'),
        ({"structured_outputs": {"regex": "(yes|no)!"}}, "(yes|no)!"),
    ],
)
def test_other_names_of_forms_are_followed(
    client: openai.OpenAI, server: Server, fields: dict[str, Any], pattern: str
) -> None:
    chat = ask(client, server, extra_body=fields).choices[0]
    completion = client.completions.create(
        model=server.model, prompt="A city:", temperature=0, max_tokens=200, extra_body=fields
    ).choices[0]
    for finish, text in ((chat.finish_reason, chat.message.content), (completion.finish_reason, completion.text)):
        assert finish == "stop"
        assert re.fullmatch(pattern, text or "")


def test_a_json_object_is_one(client: openai.OpenAI, server: Server) -> None:
    [choice] = ask(client, server, response_format={"type": "json_object"}).choices
    assert choice.message.content.lstrip().startswith("{")
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"extra_body": {"guided_regex": "(a"}}, "guided_regex", "unclosed group"),
        ({"extra_body": {"guided_json": {"type": "strange"}}}, "guided_json", "strange"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"$ref": "#/nowhere"}}}},
            "response_format",
            "nowhere",
        ),
        ({"extra_body": {"structured_outputs": {"grammar": "start: nothing"}}}, "structured_outputs", "nothing"),
    ],
)
def test_a_bad_form_is_a_400_with_its_reason(
    client: openai.OpenAI, server: Server, stream: bool, fields: dict[str, Any], param: str, reason: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=reason) as refused:
        ask(client, server, stream=stream, **fields)
    assert refused.value.param == param


def test_a_call_is_made_where_one_must_be(client: openai.OpenAI, server: Server) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 12}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        [made] = ask(client, server, tools=[tool], tool_choice=choice, parallel_tool_calls=False).choices
        assert made.finish_reason == "tool_calls"
        [call] = made.message.tool_calls
        assert call.function.name == "weather"
        assert list(json.loads(call.function.arguments)) == ["city"]
