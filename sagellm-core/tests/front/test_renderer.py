"""From a request to what the model will read: templates, tokens, lengths, block hashes, and refusals that help."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sagellm_core.front.load import load_renderer
from sagellm_core.front.renderer import OFFLOAD_CHARACTERS, PromptRenderer
from sagellm_core.tokenizer import ChatTemplates
from sagellm_protocol.blocks import block_hashes, root_hash
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.interfaces import RenderedPrompt, Renderer
from sagellm_protocol.requests import Message, Request, ToolCall, ToolDefinition
from sagellm_protocol.sampling import SamplingParams

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
SHOW = "{{ messages | tojson }}{{ tools | tojson }}"


@pytest.fixture(scope="session")
def renderer(smollm2: Path) -> PromptRenderer:
    return load_renderer(smollm2, block_size=16, max_model_len=128)


def ask(**fields: Any) -> Request:
    if "messages" in fields:
        fields["messages"] = tuple(Message(**message) for message in fields["messages"])
    sampling = {name: fields.pop(name) for name in list(fields) if name in SamplingParams.model_fields}
    return Request(request_id="r", model="m", sampling=SamplingParams(**sampling), **fields)


def refused(renderer: PromptRenderer, **fields: Any) -> SageLLMError:
    with pytest.raises(SageLLMError) as caught:
        renderer.render_now(ask(**fields))
    return caught.value


def showing(renderer: PromptRenderer, source: str = SHOW) -> PromptRenderer:
    """With a template that shows what it is given."""
    return dataclasses.replace(
        renderer,
        tokenizer=dataclasses.replace(renderer.tokenizer, chat=ChatTemplates({"default": source})),
        max_model_len=4096,
    )


async def test_a_prompt_becomes_its_tokens(renderer: PromptRenderer) -> None:
    contract: Renderer = renderer
    made = await contract.render(ask(prompt="Hello, world"))
    assert list(made.token_ids) == renderer.tokenizer.encode("Hello, world")
    assert (made.text, made.block_size, made.block_hashes) == ("Hello, world", 16, ())


def test_a_conversation_becomes_its_template(renderer: PromptRenderer) -> None:
    made = renderer.render_now(ask(messages=[{"role": "user", "content": "hi"}]))
    assert made.text == f"{SYSTEM}<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert list(made.token_ids) == renderer.tokenizer.encode(made.text, add_special_tokens=False)


def test_a_conversation_may_be_continued(renderer: PromptRenderer) -> None:
    made = renderer.render_now(
        ask(
            messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, "}],
            add_generation_prompt=False,
            continue_final_message=True,
        )
    )
    assert made.text is not None
    assert made.text.endswith("<|im_start|>assistant\nWell, ")


def test_given_tokens_are_taken_as_they_are(renderer: PromptRenderer) -> None:
    made = renderer.render_now(ask(prompt_token_ids=(5, 6, 7)))
    assert (made.token_ids, made.text) == ((5, 6, 7), None)


def test_blocks_are_hashed_by_weights_adapter_and_salt(renderer: PromptRenderer) -> None:
    ids = tuple(range(20, 60))
    made = renderer.render_now(ask(prompt_token_ids=ids))
    assert made.block_hashes == block_hashes(root_hash(renderer.model_key), ids, 16)
    assert len(made.block_hashes) == 2
    salted = renderer.render_now(ask(prompt_token_ids=ids, cache_salt="s"))
    adapted = renderer.render_now(ask(prompt_token_ids=ids, adapter="a"))
    other = dataclasses.replace(renderer, model_key="other").render_now(ask(prompt_token_ids=ids))
    assert len({made.block_hashes[0], salted.block_hashes[0], adapted.block_hashes[0], other.block_hashes[0]}) == 4


def test_a_long_prompt_keeps_its_last_tokens_when_asked_to(renderer: PromptRenderer) -> None:
    whole = renderer.tokenizer.encode("one two three four five six")
    made = renderer.render_now(ask(prompt="one two three four five six", truncate_prompt_tokens=3))
    assert list(made.token_ids) == whole[-3:]
    assert made.text == " four five six"
    assert renderer.render_now(ask(prompt="one", truncate_prompt_tokens=30)).text == "one"
    assert len(renderer.render_now(ask(prompt="word " * 500, truncate_prompt_tokens=100)).token_ids) == 100


@pytest.mark.parametrize(
    ("length", "max_tokens", "said"),
    [
        (128, None, "the prompt has 128 tokens, but this model's context holds 128"),
        (500, 5, "the prompt has 500 tokens, but this model's context holds 128"),
        (
            100,
            29,
            "the prompt has 100 tokens; with 29 tokens of output that makes 129, but this model's context holds 128",
        ),
    ],
)
def test_a_prompt_that_leaves_no_room_is_refused_naming_both_lengths(
    renderer: PromptRenderer, length: int, max_tokens: int | None, said: str
) -> None:
    error = refused(renderer, prompt_token_ids=(9,) * length, max_tokens=max_tokens)
    assert error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert error.message.startswith(said)


@pytest.mark.parametrize(("length", "max_tokens"), [(127, None), (127, 1), (100, 28)])
def test_a_prompt_that_just_fits_is_taken(renderer: PromptRenderer, length: int, max_tokens: int | None) -> None:
    assert len(renderer.render_now(ask(prompt_token_ids=(9,) * length, max_tokens=max_tokens)).token_ids) == length


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_token_ids": (1, 49_152)}, "prompt_token_ids"),
        ({"prompt": "x", "logit_bias": {50_000: 1.0}}, "sampling.logit_bias"),
        ({"prompt": "x", "allowed_token_ids": (1, 50_000)}, "sampling.allowed_token_ids"),
        ({"prompt": "x", "stop_token_ids": (10**9,)}, "sampling.stop_token_ids"),
    ],
)
def test_ids_beyond_the_vocabulary_are_refused_naming_the_field(
    renderer: PromptRenderer, fields: dict[str, Any], param: str
) -> None:
    error = refused(renderer, **fields)
    assert (error.code, error.param) == (ErrorCode.INVALID_REQUEST, param)
    assert "vocabulary of 49152" in error.message


def test_a_prompt_that_makes_no_tokens_is_refused(renderer: PromptRenderer) -> None:
    error = refused(renderer, prompt="")
    assert (error.code, error.param) == (ErrorCode.INVALID_REQUEST, "prompt")


def test_tools_that_the_template_does_not_know_are_refused(renderer: PromptRenderer) -> None:
    error = refused(renderer, messages=[{"role": "user", "content": "x"}], tools=(ToolDefinition(name="f"),))
    assert (error.code, error.param) == (ErrorCode.UNSUPPORTED, "tools")


def test_template_arguments_that_it_does_not_read_are_refused(renderer: PromptRenderer) -> None:
    error = refused(renderer, messages=[{"role": "user", "content": "x"}], chat_template_kwargs={"mood": "good"})
    assert (error.code, error.param) == (ErrorCode.INVALID_REQUEST, "chat_template_kwargs")


def test_templates_see_messages_and_tools_in_their_usual_form(renderer: PromptRenderer) -> None:
    call = ToolCall(id="c1", name="f", arguments='{"x": 1}')
    odd = ToolCall(id="c2", name="f", arguments="not json")
    made = showing(renderer).render_now(
        ask(
            messages=[
                {"role": "assistant", "tool_calls": (call, odd), "reasoning": "hm"},
                {
                    "role": "tool",
                    "content": [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}],
                    "tool_call_id": "c1",
                },
            ],
            tools=(ToolDefinition(name="f", description="d", parameters={"type": "object"}),),
        )
    )
    assert made.text == (
        '[{"role": "assistant", "content": "", "reasoning_content": "hm", "thinking": "hm", "tool_calls": '
        '[{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}, '
        '{"id": "c2", "type": "function", "function": {"name": "f", "arguments": "not json"}}]}, '
        '{"role": "tool", "content": "42", "tool_call_id": "c1"}]'
        '[{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]'
    )


def test_arguments_are_text_for_a_template_that_wants_text(renderer: PromptRenderer) -> None:
    each = "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    source = each + "{{ '!' + c.function.arguments }}{% endfor %}{% endfor %}"
    call = ToolCall(id="c1", name="f", arguments='{"x":1}')
    made = showing(renderer, source).render_now(ask(messages=[{"role": "assistant", "tool_calls": (call,)}]))
    assert made.text == '!{"x":1}'


def test_tools_that_must_not_be_called_are_not_shown(renderer: PromptRenderer) -> None:
    made = showing(renderer, "{{ tools }}{{ messages | length }}").render_now(
        ask(messages=[{"role": "user", "content": "x"}], tools=(ToolDefinition(name="f"),), tool_choice="none")
    )
    assert made.text == "None1"


@pytest.mark.parametrize(
    ("source", "role"), [("{{ messages[0].role }}", "system"), ("{# developer #}{{ messages[0].role }}", "developer")]
)
def test_the_developers_role_is_the_systems_where_a_template_does_not_know_it(
    renderer: PromptRenderer, source: str, role: str
) -> None:
    made = showing(renderer, source).render_now(ask(messages=[{"role": "developer", "content": "x"}]))
    assert made.text == role


def test_a_beginning_of_text_token_stands_once(renderer: PromptRenderer) -> None:
    from tokenizers.processors import TemplateProcessing

    backend = type(renderer.tokenizer.backend).from_str(renderer.tokenizer.backend.to_str())
    backend.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    tokenizer = dataclasses.replace(
        renderer.tokenizer, backend=backend, chat=ChatTemplates({"default": "{{ bos_token }}{{ messages[0].content }}"})
    )
    beginning = dataclasses.replace(renderer, tokenizer=tokenizer)
    for request in (
        ask(prompt="hi"),
        ask(prompt="<|im_start|>hi"),
        ask(messages=[{"role": "user", "content": "hi"}]),
    ):
        assert beginning.render_now(request).token_ids[:2].count(1) == 1
    assert 1 not in beginning.render_now(ask(prompt="hi", add_special_tokens=False)).token_ids


async def test_long_prompts_leave_the_event_loop_free(renderer: PromptRenderer) -> None:
    wide = dataclasses.replace(renderer, max_model_len=1_000_000)
    order: list[str] = []

    async def long() -> RenderedPrompt:
        made = await wide.render(ask(prompt="word " * OFFLOAD_CHARACTERS))
        order.append("long")
        return made

    async def short() -> None:
        await wide.render(ask(prompt="word"))
        order.append("short")

    made, _ = await asyncio.wait_for(asyncio.gather(long(), short()), 60)
    assert order == ["short", "long"]
    assert made == wide.render_now(ask(prompt="word " * OFFLOAD_CHARACTERS))


async def test_many_prompts_at_once_do_not_mix(renderer: PromptRenderer) -> None:
    wide = dataclasses.replace(renderer, max_model_len=1_000_000)
    prompts = [f"{number} " * OFFLOAD_CHARACTERS for number in range(8)]
    made = await asyncio.wait_for(asyncio.gather(*(wide.render(ask(prompt=prompt)) for prompt in prompts)), 60)
    assert [each.text for each in made] == prompts
    assert [wide.tokenizer.decode(each.token_ids) for each in made] == prompts


def test_the_models_own_context_counts_unless_told_otherwise(smollm2: Path) -> None:
    made = load_renderer(smollm2, block_size=16)
    assert made.max_model_len == 8192
    assert made.vocab_size == 49152


def test_weights_are_told_apart_by_what_they_are_and_not_by_how_they_are_used(smollm2: Path) -> None:
    def key(**options: Any) -> str:
        return load_renderer(smollm2, block_size=16, **options).model_key

    assert key() == key(chat_template="{{ messages }}", max_model_len=5)
    assert len({key(), key(load_format="dummy"), key(load_format="dummy", seed=1)}) == 3
