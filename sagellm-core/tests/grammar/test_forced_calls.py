"""Forced calls, reasoning before a form, calls beside one: a random model writes them, and the parsers read them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sagellm_core import LLM
from sagellm_core.front.form import OutputForm, choose_form
from sagellm_core.front.tools import TOOL_PARSERS, Harmony
from sagellm_core.front.tools.deepseek import DeepSeek
from sagellm_core.front.tools.kimi import Kimi
from sagellm_core.grammar.base import GrammarError, Matcher
from sagellm_core.grammar.guidance import GuidanceCompiler
from sagellm_core.tokenizer import ChatTemplates, load_tokenizer
from sagellm_protocol import ErrorCode, FinishReason, Request, Response, SageLLMError, SamplingParams
from sagellm_protocol.interfaces import RenderedPrompt
from scripted_core import TEMPLATE, write_model
from tiny_llm import write_tiny
from written_calls import FORCED as WRITTEN

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "$defs": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
    "properties": {"a": {"$ref": "#/$defs/digit"}, "b": {"enum": ["x", 'y"']}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = [{"name": "add", "parameters": PARAMETERS}, {"name": "now"}]
FORM = {"regex": "[0-9]{4}"}
LIVE = ("deepseek", "glm", "harmony", "hermes", "pythonic", "qwen3_coder")
"""Forms that a model writes here, one of each kind; of the others the grammars alone are followed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"), *DeepSeek.markers, *Harmony.markers, *Kimi.markers)


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


@pytest.fixture(scope="module", params=LIVE)
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
    for seed in range(2):
        response = talk(llm, seed, tools=TOOLS, tool_choice={"name": "add"})
        assert check_calls(response) == ["add"]
        assert response.finish_reason is FinishReason.TOOL_CALLS


def test_where_a_call_is_required_some_are_made(llm: LLM) -> None:
    for seed in range(4):
        response = talk(llm, seed, tools=TOOLS, tool_choice="required", parallel_tool_calls=seed % 2 == 0)
        if response.finish_reason is not FinishReason.LENGTH:
            made = check_calls(response)
            assert response.finish_reason is FinishReason.TOOL_CALLS
            assert seed % 2 == 0 or len(made) == 1


def test_beside_a_form_there_is_an_answer_of_it_or_a_call(llm: LLM) -> None:
    for seed in range(3):
        response = talk(llm, seed, tools=TOOLS, structured=FORM)
        [output] = response.outputs
        if output.tool_calls:
            check_calls(response)
        else:
            assert len(output.text) == 4
            assert output.text.isdigit()


def test_a_forced_call_leaves_nothing_to_a_form(llm: LLM) -> None:
    assert check_calls(talk(llm, tools=TOOLS, tool_choice={"name": "now"}, structured=FORM)) == ["now"]


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


def test_analysis_is_free_and_the_final_channel_is_not(folder: Path) -> None:
    with open_llm(folder, "harmony", "harmony") as llm:
        answers = [talk(llm, seed, max_tokens=120, structured=FORM) for seed in range(4)]
    assert any(answer.output_text for answer in answers)
    for answer in answers:
        assert re.fullmatch("[0-9]{4}", answer.output_text) or answer.finish_reason is FinishReason.LENGTH
        assert answer.outputs[0].reasoning is None or answer.usage.reasoning_tokens


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


@pytest.mark.parametrize("parameters", [{}, {"properties": {"a": {"type": "boolean"}}}])
def test_arguments_are_an_object_where_the_schema_does_not_say_so(tmp_path: Path, parameters: dict[str, Any]) -> None:
    form = marked(tmp_path, tool_parser="json", reasoning_parser="none")
    request = ask(tools=[{"name": "f", "parameters": parameters}], tool_choice="required")
    assert follow(form, request, '{"name": "f", "arguments": {}').accepting is False
    assert follow(form, request, '{"name": "f", "arguments": {}}').accepting
    with pytest.raises(GrammarError):
        follow(form, request, '{"name": "f", "arguments": [')


SCHEMA: dict[str, Any] = {
    "type": "object",
    "$defs": {"place": {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": False}},
    "properties": {
        "s": {"type": "string"},
        "n": {"type": "integer", "maximum": 99},
        "flag": {"type": "boolean"},
        "color": {"enum": ["red", "dark blue"]},
        "at": {"$ref": "#/$defs/place"},
        "note": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}]},
    },
    "required": ["s", "flag"],
}
ALL = {"s": "a\nb", "n": 7, "flag": True, "color": "dark blue", "at": {"x": 1}, "note": "x"}
FEW = {"s": "", "flag": False, "note": None}


def test_each_form_has_a_writer() -> None:
    assert set(WRITTEN) == set(TOOL_PARSERS)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("given", [ALL, FEW])
def test_calls_as_a_family_writes_them_are_what_it_may_be_forced_to(
    tmp_path: Path, name: str, given: dict[str, Any]
) -> None:
    special = tuple(marker for marker in TOOL_PARSERS[name].markers if marker.startswith(("<|t", "<|c", "<|s", "<｜")))
    form = marked(tmp_path, *special, tool_parser=name, reasoning_parser="none")
    request = ask(tools=[{"name": "f", "parameters": SCHEMA}, {"name": "now"}], tool_choice="required")
    write = WRITTEN[name]
    one = request.model_copy(update={"parallel_tool_calls": False})
    assert follow(form, one, write([("f", given)])).accepting
    two = write([("now", {}), ("f", given)])
    assert follow(form, request, two).accepting
    with pytest.raises(GrammarError):
        follow(form, one, two)
    with pytest.raises(GrammarError):
        follow(form, request, write([("f", {**given, "flag": 3})]))
    with pytest.raises(GrammarError):
        follow(form, request, write([("g", given)]))
    with pytest.raises(GrammarError):
        follow(form, request, "Sure")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string"}, ["", "x\ny", "</p>"], []),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc"], ["a", "abcd"]),
        ({"type": "string", "pattern": "^(a|b)[0-9]+$"}, ["a1", "b22"], ["c1", "a", "a1x"]),
        ({"type": "string", "pattern": "b"}, ["abc", "b"], ["ac"]),
        ({"type": "string", "pattern": "a", "maxLength": 2}, ["ab", "a"], ["b", "abc"]),
        ({"type": "string", "format": "date"}, ["2026-01-31"], ["2026-13-01", "today"]),
        ({"type": "string", "format": "ipv4"}, ["127.0.0.1"], ["256.1.1.1"]),
        ({"type": "string", "const": "x"}, ["x"], ["y"]),
        ({"type": ["string", "integer"], "maxLength": 1}, ["a"], ["ab"]),
        ({"enum": ["a", 1, None]}, ["a", "1", "null"], ["b", "2"]),
        ({"oneOf": [{"type": "string", "maxLength": 1}, {"type": "array"}]}, ["a", "[1]"], ["ab"]),
        ({"$ref": "#/$defs/t"}, ["ab"], ["abc"]),
        ({"anyOf": [{"$ref": "#/$defs/t"}, {"type": "null"}], "default": None}, ["ab", "null"], ["abc"]),
        ({"type": "number", "minimum": 1}, ["1.5", "2"], ["0", "x"]),
        ({}, ["anything", "1"], []),
    ],
)
def test_values_in_tags_follow_their_schema(
    tmp_path: Path, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    form = marked(tmp_path, tool_parser="qwen3_coder", reasoning_parser="none")
    defined = {"$defs": {"t": {"type": "string", "maxLength": 2}}}
    tool = {"name": "f", "parameters": {**defined, "properties": {"a": schema}, "required": ["a"]}}
    request = ask(tools=[tool], tool_choice={"name": "f"})

    def call(value: str) -> str:
        return f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>"

    for value in good:
        assert follow(form, request, call(value)).complete
    for value in bad:
        with pytest.raises(GrammarError):
            follow(form, request, call(value))


# Alternatives of alternatives: few to read, and more than can be written.
MANY: dict[str, Any] = {"anyOf": [{"$ref": "#/$defs/more"}] * 40}
DEFINED: dict[str, Any] = {"$defs": {"more": {"anyOf": [{"$ref": "#/$defs/text"}] * 40}, "text": {"type": "string"}}}
DEEP: dict[str, Any] = {"$defs": {f"t{level}": {"$ref": f"#/$defs/t{level + 1}"} for level in range(20)}}
DEEP["$defs"]["t20"] = {"type": "string"}


@pytest.mark.parametrize(
    ("parameters", "code", "reason"),
    [
        ({"patternProperties": {}}, ErrorCode.UNSUPPORTED, '"patternProperties"'),
        ({"properties": {"a": {"type": "string", "format": "iri"}}}, ErrorCode.UNSUPPORTED, "format 'iri'"),
        ({"properties": {"a": {"type": "string", "not": {}}}}, ErrorCode.UNSUPPORTED, '"not"'),
        ({"properties": {"a": {"type": "string", "pattern": "^a|b"}}}, ErrorCode.UNSUPPORTED, "only a part"),
        ({"properties": {"a": {"type": "string", "pattern": 1}}}, ErrorCode.INVALID_REQUEST, "no string"),
        ({"properties": {"a": {"type": "odd"}}}, ErrorCode.INVALID_REQUEST, "no value fits parameter 'a'"),
        ({"properties": {"a": {"type": "string", "enum": [1]}}}, ErrorCode.INVALID_REQUEST, "no value fits"),
        ({"properties": {"a": {"$ref": "#/nowhere"}}}, ErrorCode.INVALID_REQUEST, "leads to no schema"),
        ({"properties": {"a": {"oneOf": [{"type": "string"}, {}]}}}, ErrorCode.UNSUPPORTED, "oneOf"),
        ({"properties": {"a": {"enum": ["</parameter>"]}}}, ErrorCode.UNSUPPORTED, "from its end"),
        ({"properties": {"a": MANY}, **DEFINED}, ErrorCode.UNSUPPORTED, "alternatives"),
        ({"properties": {"a": {"$ref": "#/$defs/t0"}}, **DEEP}, ErrorCode.UNSUPPORTED, "references within references"),
        ({"properties": {"a<": {}}}, ErrorCode.UNSUPPORTED, "'a<' cannot be written"),
        ({"properties": []}, ErrorCode.INVALID_REQUEST, "properties that are no object"),
        ({"required": "a"}, ErrorCode.INVALID_REQUEST, "required 'a', which is no list of names"),
        ({"required": [[1]]}, ErrorCode.INVALID_REQUEST, "required [[1]], which is no list of names"),
        ({"properties": {"a": {"type": "string", "enum": None}}}, ErrorCode.INVALID_REQUEST, "the enum None"),
        ({"properties": {"a": {"type": "string", "format": []}}}, ErrorCode.UNSUPPORTED, "format []"),
        ({"properties": {"a": {"type": "string", "minLength": "1"}}}, ErrorCode.INVALID_REQUEST, "the minLength '1'"),
        ({"properties": {"a": {"type": "string", "maxLength": -1}}}, ErrorCode.INVALID_REQUEST, "the maxLength -1"),
        ({"required": ["a"], "additionalProperties": False}, ErrorCode.INVALID_REQUEST, "no value fits"),
    ],
)
def test_what_values_in_tags_cannot_be_held_to_is_refused_by_name(
    tmp_path: Path, parameters: dict[str, Any], code: ErrorCode, reason: str
) -> None:
    form = marked(tmp_path, tool_parser="qwen3_coder")
    request = ask(tools=[{"name": "f", "parameters": parameters}], tool_choice="required")
    with pytest.raises(SageLLMError, match=re.escape(reason)) as refused:
        follow(form, request, "")
    assert (refused.value.code, refused.value.param) == (code, "tools")


@pytest.mark.parametrize("parser", ["deepseek", "harmony", "kimi", "pythonic", "qwen3_coder"])
def test_a_function_whose_name_a_form_has_no_place_for_is_refused_by_name(tmp_path: Path, parser: str) -> None:
    form = marked(tmp_path, tool_parser=parser, reasoning_parser="none")
    with pytest.raises(SageLLMError, match="function 'a b' cannot be written") as refused:
        follow(form, ask(tools=[{"name": "a b"}], tool_choice="required"), "")
    assert (refused.value.code, refused.value.param) == (ErrorCode.UNSUPPORTED, "tools")


CHANNELS = {"tool_parser": "harmony", "reasoning_parser": "harmony"}
THOUGHT = "<|channel|>analysis<|message|>so, {1}<|end|><|start|>assistant"
CALLED = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}"


def test_a_form_is_asked_of_the_final_channel_after_free_analysis(tmp_path: Path) -> None:
    form = marked(tmp_path, *Harmony.markers, **CHANNELS)
    request = ask(structured=FORM)
    for before in ("", THOUGHT, THOUGHT * 2):
        for prompt, opening in (("<|start|>assistant", ""), ("hi", "<|start|>assistant"), ("hi", "")):
            final = f"{opening}{before}<|channel|>final<|message|>"
            assert follow(form, request, f"{final}1234", prompt).complete
            assert not follow(form, request, f"{final}12", prompt).accepting
            with pytest.raises(GrammarError):
                follow(form, request, f"{final}a", prompt)
    typed = "<|channel|>final <|constrain|>json<|message|>1234"
    assert follow(form, request, typed).complete
    with pytest.raises(GrammarError):
        follow(form, request, "1234")
    continued = ask(structured=FORM, add_generation_prompt=False, continue_final_message=True)
    assert follow(form, continued, "1234", "<|start|>assistant<|channel|>final<|message|>").complete
    assert follow(form, ask(messages=None, prompt="hi", structured=FORM), "1234").complete


def test_calls_are_forced_on_their_channel_after_free_analysis(tmp_path: Path) -> None:
    form = marked(tmp_path, *Harmony.markers, **CHANNELS)
    request = ask(tools=TOOLS, tool_choice="required")
    assert follow(form, request, f"{THOUGHT}{CALLED}").accepting
    assert follow(form, request, f"{CALLED}<|call|><|start|>assistant{CALLED}").accepting
    assert follow(form, request.model_copy(update={"parallel_tool_calls": False}), CALLED).complete
    with pytest.raises(GrammarError):
        follow(form, request, "<|channel|>final")
    either = ask(tools=TOOLS, structured=FORM)
    assert follow(form, either, f"{THOUGHT}{CALLED}").accepting
    assert follow(form, either, f"{THOUGHT}<|channel|>final<|message|>1234").complete
    continued = ask(tools=TOOLS, tool_choice="required", add_generation_prompt=False, continue_final_message=True)
    assert follow(form, continued, f"<|end|><|start|>assistant{CALLED}").accepting
