"""Calls and reasoning through the engine: events, endings, counts, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sagellm_core.core.sequence import Finish
from sagellm_core.front.engine import FrontEngine
from sagellm_core.front.form import choose_form
from sagellm_core.front.reasoning import REASONING_PARSERS
from sagellm_core.front.tools import TOOL_PARSERS
from sagellm_core.tokenizer import ChatTemplates, Tokenizer, load_tokenizer
from sagellm_protocol import ErrorCode, FinishReason, Request, Response, ResponseBuilder, SageLLMError, features
from sagellm_protocol.testing import check_stream, read_all
from scripted_core import TEMPLATE, scripted_engine, write_model

HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")
SPECIAL = (*HARMONY, "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>")
TOOLS = ({"name": "now"}, {"name": "add"})
CALLS = (
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
    '<tool_call>{"name": "add", "arguments": {"a": "}"}}</tool_call>'
)
HERMES = {"tool_parser": "hermes", "reasoning_parser": "think"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("scripted"), *SPECIAL)


def request(**fields: Any) -> Request:
    return Request.model_validate(
        {"request_id": "r", "model": "scripted", "messages": [{"role": "user", "content": "hi"}], **fields}
    )


async def answer(engine: FrontEngine, asked: Request) -> Response:
    await engine.start()
    try:
        events = await read_all(engine.generate(asked))
    finally:
        await engine.stop()
    check_stream(events, asked)
    builder = ResponseBuilder(asked.model)
    for event in events:
        builder.add(event)
    return builder.response()


def calls(response: Response, choice: int = 0) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in response.outputs[choice].tool_calls]


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
async def test_reasoning_answer_and_calls_come_apart(folder: Path, step: int) -> None:
    text = f"<think>\nhm, <tool_call>\n</think>\n\nLet me see.\n{CALLS}\n"
    engine = scripted_engine(folder, text, step=step, **HERMES)
    response = await answer(engine, request(tools=TOOLS, sampling={"logprobs": None}))
    [output] = response.outputs
    assert output.reasoning == "hm, <tool_call>"
    assert output.text == "Let me see.\n"
    assert calls(response) == [("now", "{}"), ("add", '{"a": "}"}')]
    assert len({call.id for call in output.tool_calls}) == 2
    assert output.finish_reason is FinishReason.TOOL_CALLS
    assert response.usage.completion_tokens == len(text) + 1
    # From the token that completes the opening mark to the one that completes the closing mark.
    assert response.usage.reasoning_tokens == len(text[len("<think") : text.index("</think>") + len("</think>")])


async def test_arguments_are_told_while_they_are_written(folder: Path) -> None:
    engine = scripted_engine(folder, CALLS, **HERMES)
    await engine.start()
    events = await read_all(engine.generate(request(tools=TOOLS)))
    await engine.stop()
    pieces = [piece for event in events if event.type == "delta" for piece in event.tool_calls if piece.index == 1]
    assert (pieces[0].name, pieces[0].id is not None) == ("add", True)
    assert all(piece.name is None and piece.id is None for piece in pieces[1:])
    assert len(pieces) > 5


async def test_only_the_first_call_is_made_where_one_is_wanted(folder: Path) -> None:
    engine = scripted_engine(folder, CALLS, **HERMES)
    response = await answer(engine, request(tools=TOOLS, parallel_tool_calls=False))
    assert calls(response) == [("now", "{}")]
    assert response.finish_reason is FinishReason.TOOL_CALLS
    assert response.output_text == ""
    # The core was told to stop: what it would have written is not counted.
    assert response.usage.completion_tokens == CALLS.index("}") + 1


async def test_each_choice_has_calls_of_its_own(folder: Path) -> None:
    engine = scripted_engine(folder, CALLS, step=3, **HERMES)
    response = await answer(engine, request(tools=TOOLS, sampling={"n": 2}))
    assert calls(response, 0) == calls(response, 1) == [("now", "{}"), ("add", '{"a": "}"}')]
    assert len({call.id for output in response.outputs for call in output.tool_calls}) == 4


async def test_a_call_that_is_cut_off_ends_by_its_length(folder: Path) -> None:
    text = CALLS[: CALLS.index('"}"')]
    response = await answer(scripted_engine(folder, text, finish=Finish.LENGTH, **HERMES), request(tools=TOOLS))
    assert calls(response) == [("now", "{}"), ("add", '{"a": ')]
    assert response.finish_reason is FinishReason.LENGTH


async def test_a_stop_string_within_a_call_ends_it_as_stopped(folder: Path) -> None:
    asked = request(tools=TOOLS, sampling={"stop": '"}"'})
    response = await answer(scripted_engine(folder, CALLS, **HERMES), asked)
    assert calls(response) == [("now", "{}"), ("add", '{"a": ')]
    assert (response.finish_reason, response.outputs[0].stop_reason) == (FinishReason.STOP, '"}"')
    after = request(tools=TOOLS, sampling={"stop": "\n<tool_call>{"})
    response = await answer(scripted_engine(folder, CALLS, **HERMES), after)
    assert calls(response) == [("now", "{}")]
    assert response.finish_reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS, "tool_choice": "none"}, {"messages": None, "prompt": "hi"}])
async def test_where_no_call_is_wanted_all_text_is_content(folder: Path, fields: dict[str, Any]) -> None:
    response = await answer(scripted_engine(folder, CALLS, **HERMES), request(**fields))
    assert response.output_text == CALLS
    assert response.outputs[0].tool_calls == ()
    assert response.finish_reason is FinishReason.STOP


async def test_reasoning_that_the_template_opened_is_reasoning(folder: Path) -> None:
    template = TEMPLATE + "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
    engine = scripted_engine(folder, "hm</think>yes", chat_template=template)
    response = await answer(engine, request())
    assert (response.outputs[0].reasoning, response.output_text) == ("hm", "yes")
    continued = request(
        messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>w"}],
        add_generation_prompt=False,
        continue_final_message=True,
    )
    engine = scripted_engine(folder, "hm</think>yes", chat_template=template)
    response = await answer(engine, continued)
    assert (response.outputs[0].reasoning, response.output_text) == ("hm", "yes")


async def test_reasoning_is_left_in_the_text_where_the_operator_says_so(folder: Path) -> None:
    engine = scripted_engine(folder, "<think>hm</think>yes", reasoning_parser="none")
    response = await answer(engine, request())
    assert response.output_text == "<think>hm</think>yes"
    assert response.outputs[0].reasoning is None
    assert response.usage.reasoning_tokens is None


@pytest.mark.parametrize("step", [1, 5])
async def test_marks_that_are_special_tokens_are_seen_and_not_shown(folder: Path, step: int) -> None:
    text = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>Wait.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{"a": "<|call|>"}<|call|>'
    )
    harmony = {"tool_parser": "harmony", "reasoning_parser": "harmony"}
    response = await answer(scripted_engine(folder, text, step=step, **harmony), request(tools=TOOLS))
    assert response.outputs[0].reasoning == "hm"
    assert response.output_text == "Wait."
    assert calls(response) == [("now", '{"a": "<|call|>"}')]
    without = await answer(scripted_engine(folder, text[: text.index("Wait.") + 5], **harmony), request())
    assert (without.outputs[0].reasoning, without.output_text) == ("hm", "Wait.")
    marked = '[TOOL_CALLS]now[ARGS]{"a": 1}<|python_tag|>'
    response = await answer(scripted_engine(folder, marked, tool_parser="mistral"), request(tools=TOOLS))
    assert calls(response) == [("now", '{"a": 1}')]
    assert response.output_text == ""
    [call] = response.outputs[0].tool_calls
    assert len(call.id) == 9


async def refused(engine: FrontEngine, **fields: Any) -> SageLLMError:
    with pytest.raises(SageLLMError) as refusal:
        await answer(engine, request(**fields))
    return refusal.value


@pytest.mark.parametrize("fields", [{"tools": TOOLS}, {"chat_template_kwargs": {"x": 1}}])
async def test_what_is_for_the_template_is_refused_beside_a_prompt(folder: Path, fields: dict[str, Any]) -> None:
    error = await refused(scripted_engine(folder, "x", **HERMES), messages=None, prompt="hi", **fields)
    assert (error.code, error.param) == (ErrorCode.INVALID_REQUEST, next(iter(fields)))


async def test_tools_are_refused_where_calls_cannot_be_read(folder: Path) -> None:
    for fields in (
        {"tool_parser": "none"},
        {"chat_template": "{{ messages }}"},
        {"chat_template": TEMPLATE + "<function="},
    ):
        error = await refused(scripted_engine(folder, "x", **fields), tools=TOOLS)
        assert (error.code, error.param) == (ErrorCode.UNSUPPORTED, "tools")


async def test_reasoning_effort_reaches_templates_that_read_it_and_is_refused_by_others(folder: Path) -> None:
    error = await refused(scripted_engine(folder, "x"), reasoning_effort="low")
    assert (error.code, error.param) == (ErrorCode.UNSUPPORTED, "reasoning_effort")
    engine = scripted_engine(folder, "x", chat_template="{{ reasoning_effort }}")
    assert (await answer(engine, request(reasoning_effort="low"))).usage.prompt_tokens == len("low")
    given = {"reasoning_effort": "high"}
    error = await refused(engine, reasoning_effort="low", chat_template_kwargs=given)
    assert "'low', and chat_template_kwargs say 'high'" in error.message


async def test_a_template_of_the_request_runs_only_where_the_operator_allows_it(folder: Path) -> None:
    engine = scripted_engine(folder, "x")
    error = await refused(engine, chat_template="{{ 1 }}")
    assert (error.code, error.param) == (ErrorCode.UNSUPPORTED, "chat_template")
    # A renderer is asked before any engine is, and must refuse by itself.
    with pytest.raises(SageLLMError, match="trust_request_chat_template"):
        await engine.renderer.render(request(chat_template="{{ 1 }}"))
    trusting = scripted_engine(folder, "x", trust_request_chat_template=True)
    response = await answer(trusting, request(chat_template="{{ messages[0].content }}!"))
    assert response.usage.prompt_tokens == len("hi!")


async def test_what_an_engine_offers_conversations_follows_from_its_template(folder: Path) -> None:
    engine = scripted_engine(folder, "x", chat_template=TEMPLATE + "{{ reasoning_effort }}")
    await engine.start()
    offered = engine.info.capabilities.features
    await engine.stop()
    assert {features.CHAT, features.TOOLS, features.REASONING_EFFORT} <= offered
    assert features.TOOL_CHOICE in offered
    assert features.CHAT_TEMPLATE not in offered


SIGNS = [
    ("{{ tools }}<tool_call>", "hermes", None),
    ("{{ tools }}<tool_call><think>", "hermes", "think"),
    ("{{ tools }}[TOOL_CALLS]", "mistral", None),
    ("{{ tools }}[TOOL_CALLS][THINK]", "mistral", "mistral"),
    ("{{ tools }}<｜tool▁calls▁begin｜>\n```json<think>", "deepseek", "think"),
    ("{{ tools }}<｜tool▁calls▁begin｜><think>", "deepseek_v31", "think"),
    ("{{ tools }}<|tool_calls_section_begin|>", "kimi", None),
    ("{{ tools }}<|tool_call|>", "granite", None),
    ("{{ tools }}<tool_call>Here is my thought process:", "hermes", "granite"),
    ("{{ tools }}<|tool_call|><think></think><response></response>", "granite", "think_response"),
    ("{{ tools }}<|channel|>", "harmony", "harmony"),
    ("{{ tools }}<|python_tag|><|start_header_id|>", "llama3_json", None),
    ("{{ tools }}[func_name1(params_name1=1)]<|python_tag|>", "pythonic", None),
    ("{{ tools }}<tool_call><function=", None, None),
    ("{{ tools }}<tool_call><function=f><parameter=a>", "qwen3_coder", None),
    ("{{ tools }}<tool_call>{name}<arg_key></arg_key><think>", "glm", "think"),
    ("{{ tools }}<minimax:tool_call><think>", "minimax", "think"),
    ("{{ tools }}<seed:tool_call><function=f><parameter=a><seed:think>", "seed_oss", "seed_oss"),
    ("{{ tools }}", "json", None),
    ("{{ messages }}<tool_call>", None, None),
]


@pytest.mark.parametrize(("template", "tools", "reasoning"), SIGNS, ids=[template for template, _, _ in SIGNS])
def test_parsers_are_chosen_by_the_models_template(
    tmp_path: Path, template: str, tools: str | None, reasoning: str | None
) -> None:
    form = choose_form(load_tokenizer(write_model(tmp_path), chat_template=template))
    assert form.tools is (None if tools is None else TOOL_PARSERS[tools])
    assert form.reasoning is (None if reasoning is None else REASONING_PARSERS[reasoning])


def test_a_vocabulary_shows_the_form_where_the_template_does_not(tmp_path: Path) -> None:
    plain: Tokenizer = load_tokenizer(write_model(tmp_path, "[TOOL_CALLS]", "<think>"), chat_template="{{ tools }}")
    form = choose_form(plain)
    assert form.tools is TOOL_PARSERS["mistral"]
    assert form.reasoning is not None
    assert form.reasoning.__name__ == "Think"


def test_each_parser_may_be_named(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_model(tmp_path), chat_template="{{ tools }}")
    for name, parser in TOOL_PARSERS.items():
        assert choose_form(tokenizer, tool_parser=name).tools is parser
    assert choose_form(tokenizer, tool_parser="none").tools is None
    assert ChatTemplates({"default": "{% broken"}).reads("tools") is False
