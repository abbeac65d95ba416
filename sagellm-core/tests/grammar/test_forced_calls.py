"""Forced calls, reasoning before a form, calls beside one: a random model writes them, and the parsers read them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sagellm_core import LLM
from sagellm_core.front.form import OutputForm, choose_form
from sagellm_core.front.tools import TOOL_PARSERS
from sagellm_core.grammar.base import GrammarError, Matcher
from sagellm_core.grammar.guidance import GuidanceCompiler
from sagellm_core.tokenizer import ChatTemplates, load_tokenizer
from sagellm_protocol import ErrorCode, FinishReason, Request, Response, SageLLMError, SamplingParams
from sagellm_protocol.interfaces import RenderedPrompt
from scripted_core import TEMPLATE, write_model
from tiny_llm import write_tiny

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "$defs": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
    "properties": {"a": {"$ref": "#/$defs/digit"}, "b": {"enum": ["x", 'y"']}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = [{"name": "add", "parameters": PARAMETERS}, {"name": "now"}]
FORM = {"regex": "[0-9]{4}"}
FORCED = sorted(TOOL_PARSERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def open_llm(folder: Path, tools: str, reasoning: str = "none") -> LLM:
    return LLM(
        str(folder),
        dtype="float32",
        threads=1,
        max_num_seqs=4,
        chat_template=TEMPLATE,
        tool_parser=tools,
        reasoning_parser=reasoning,
    )


@pytest.fixture(scope="module", params=FORCED)
def llm(folder: Path, request: pytest.FixtureRequest) -> Iterator[LLM]:
    with open_llm(folder, request.param) as opened:
        yield opened


def talk(llm: LLM, seed: int = 0, max_tokens: int = 300, **fields: Any) -> Response:
    sampling = SamplingParams(temperature=1.0, seed=seed, max_tokens=max_tokens)
    [response] = llm.chat([{"role": "user", "content": "hi"}], sampling, progress=False, **fields)
    return response


def check_calls(response: Response) -> list[str]:
    [output] = response.outputs
    assert output.text == ""
    assert output.tool_calls
    for call in output.tool_calls:
        schema = PARAMETERS if call.name == "add" else {"type": "object", "maxProperties": 0}
        jsonschema.validate(json.loads(call.arguments), schema)
    return [call.name for call in output.tool_calls]


def test_one_that_is_named_is_called_once(llm: LLM) -> None:
    for seed in range(4):
        response = talk(llm, seed, tools=TOOLS, tool_choice={"name": "add"})
        assert check_calls(response) == ["add"]
        assert response.finish_reason is FinishReason.TOOL_CALLS


def test_where_a_call_is_required_some_are_made(llm: LLM) -> None:
    names: set[str] = set()
    for seed in range(8):
        response = talk(llm, seed, tools=TOOLS, tool_choice="required", parallel_tool_calls=seed % 2 == 0)
        if response.finish_reason is not FinishReason.LENGTH:
            made = check_calls(response)
            assert response.finish_reason is FinishReason.TOOL_CALLS
            assert seed % 2 == 0 or len(made) == 1
            names.update(made)
    assert names == {"add", "now"}


def test_beside_a_form_there_is_an_answer_of_it_or_a_call(llm: LLM) -> None:
    for seed in range(6):
        response = talk(llm, seed, tools=TOOLS, structured=FORM)
        [output] = response.outputs
        if output.tool_calls:
            check_calls(response)
        else:
            assert len(output.text) == 4
            assert output.text.isdigit()


def test_a_forced_call_leaves_nothing_to_a_form(llm: LLM) -> None:
    assert check_calls(talk(llm, tools=TOOLS, tool_choice={"name": "now"}, structured=FORM)) == ["now"]


@pytest.mark.parametrize("parameters", [{}, {"properties": {"a": {"type": "boolean"}}}])
def test_arguments_are_an_object_where_the_schema_does_not_say_so(llm: LLM, parameters: dict[str, Any]) -> None:
    tools = [{"name": "f", "parameters": {**parameters, "additionalProperties": False}}]
    for seed in range(3):
        [output] = talk(llm, seed, tools=tools, tool_choice="required").outputs
        assert output.text == "" or output.finish_reason == "length"
        assert all(call.arguments.lstrip().startswith("{") for call in output.tool_calls)


def test_parameters_that_cannot_be_followed_are_refused_by_name(llm: LLM) -> None:
    bad = [{"name": "f", "parameters": {"type": "strange"}}]
    with pytest.raises(SageLLMError, match=r"tools cannot be followed: .*strange") as refused:
        talk(llm, tools=bad, tool_choice="required")
    assert (refused.value.code, refused.value.param) == (ErrorCode.INVALID_REQUEST, "tools")


@pytest.mark.parametrize(
    ("reasoning", "tags"), [("think", ("<think>", "</think>")), ("mistral", ("[THINK]", "[/THINK]"))]
)
def test_reasoning_is_free_and_the_answer_after_it_is_not(folder: Path, reasoning: str, tags: tuple[str, str]) -> None:
    opened = {"add_generation_prompt": False, "continue_final_message": True}
    with open_llm(folder, "hermes", reasoning) as llm:
        thoughts = 0
        for seed in range(3):
            # The prompt has opened it, and the random model does not close it: its length ends it, in thought.
            messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": tags[0]}]
            sampling = SamplingParams(temperature=1.0, seed=seed, max_tokens=40)
            [response] = llm.chat(messages, sampling, progress=False, structured=FORM, **opened)
            assert response.finish_reason is FinishReason.LENGTH
            assert response.output_text == ""
            thoughts += len(set(response.outputs[0].reasoning or ""))
        assert thoughts > 20


def ask(**fields: Any) -> Request:
    return Request.model_validate(
        {"request_id": "r", "model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    )


def follow(form: OutputForm, request: Request, text: str, prompt: str = "hi") -> Matcher:
    """A matcher that has followed ``text`` through what the request asks for."""
    encode = form.tokenizer.encode
    constraint = form.constraint(request, RenderedPrompt(token_ids=tuple(encode(prompt)), block_size=16))
    assert constraint is not None
    size = form.tokenizer.vocab_size
    matcher = GuidanceCompiler(form.tokenizer, size, (0,)).compile(constraint.grammar).matcher()
    matcher.accept(encode(text, add_special_tokens=False))
    return matcher


def marked(folder: Path, *special: str, **parsers: str) -> OutputForm:
    tokenizer = load_tokenizer(write_model(folder, *special))
    return choose_form(dataclasses.replace(tokenizer, chat=ChatTemplates({"default": TEMPLATE})), **parsers)


@pytest.mark.parametrize("special", [(), ("</think>",), ("<think>", "</think>")])
def test_the_form_begins_where_reasoning_ends(tmp_path: Path, special: tuple[str, ...]) -> None:
    form = marked(tmp_path, *special, reasoning_parser="think")
    request = ask(structured=FORM)
    for prompt, thought in (("hi", "<think>so, {1}\n </thin "), ("hi<think>\n", "so, <think> {1}" * (not special))):
        assert not follow(form, request, thought, prompt).accepting
        assert follow(form, request, f"{thought}</think>\n\n1234", prompt).complete
        assert follow(form, request, f"{thought}</think>1234", prompt).complete
        with pytest.raises(GrammarError):
            follow(form, request, f"{thought}</think>a", prompt)
    assert follow(form, request, "1234").complete  # it need not reason, unless the prompt has begun it
    assert not follow(form, request, "1234", "hi<think>").accepting
    assert follow(form, request.model_copy(update={"messages": None, "prompt": "hi"}), "1234", "hi<think>").complete


def test_marks_that_are_special_tokens_are_written_as_tokens(tmp_path: Path) -> None:
    form = marked(tmp_path, "[TOOL_CALLS]", "[ARGS]", tool_parser="mistral", reasoning_parser="none")
    request = ask(tools=TOOLS, tool_choice="required")
    call = '[TOOL_CALLS]add[ARGS]{"a": 3}'
    assert follow(form, request, call).accepting
    assert follow(form, request, f"{call}[TOOL_CALLS]now[ARGS]{{}}").accepting
    assert follow(form, request.model_copy(update={"parallel_tool_calls": False}), call).complete
    assert len(form.tokenizer.encode(call)) == len(call) - len("[TOOL_CALLS]") - len("[ARGS]") + 2
