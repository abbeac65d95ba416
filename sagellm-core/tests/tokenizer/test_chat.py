"""Chat templates: rendered as the reference renders them, in a sandbox, with refusals in the template's own words."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from sagellm_core.tokenizer import ChatTemplates, chat as chat_module
from sagellm_protocol.errors import ErrorCode, SageLLMError

USER = [{"role": "user", "content": "hi"}]
TALK = [*USER, {"role": "assistant", "content": "Well,  "}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<é>", "parameters": {"type": "object"}}}]

CHATML = (
    "{%- for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}"
)
TRIMMING = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
RICH = """\
{%- set ns = namespace(count=0) -%}
{%- if tools %}{{ tools | tojson }}{{ tools | tojson(indent=2) }}{% endif %}
{%- for m in messages -%}
    {%- if m.role == 'skip' %}{% continue %}{% endif -%}
    {%- set ns.count = ns.count + 1 -%}
    {% generation %}{{ m.role }}:{{ m.content.strip() | upper }}{% endgeneration %}
    {%- if ns.count > 2 %}{% break %}{% endif -%}
{%- endfor -%}
{{ bos_token }}{{ ns.count }}{{ 'thinking' if enable_thinking is defined and enable_thinking else '' }}
"""


def render(source: str, messages: list[dict[str, Any]] | None = None, **options: Any) -> str:
    return ChatTemplates({"default": source}).render(messages or USER, **options)


def refused(source: str, messages: list[dict[str, Any]] | None = None, **options: Any) -> SageLLMError:
    with pytest.raises(SageLLMError) as caught:
        render(source, messages, **options)
    return caught.value


@pytest.mark.parametrize(("source", "tools"), [(CHATML, []), (TRIMMING, []), (RICH, []), (RICH, TOOLS)])
@pytest.mark.parametrize("messages", [USER, TALK, [{"role": "skip", "content": "x"}, *TALK, *TALK]])
def test_templates_render_as_the_reference_renders_them(
    source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]]
) -> None:
    expected, _ = render_jinja_template(
        [messages], tools=list(tools) or None, chat_template=source, add_generation_prompt=True, bos_token="<s>"
    )
    assert render(source, messages, tools=tools, special_tokens={"bos_token": "<s>"}) == expected[0]


@pytest.mark.parametrize("source", [CHATML, TRIMMING])
@pytest.mark.parametrize("last", ["Well, ", "Well,", "  two  words  ", "user"])
def test_a_message_is_continued_where_the_reference_continues_it(source: str, last: str) -> None:
    messages = [*USER, {"role": "assistant", "content": last}]
    expected, _ = render_jinja_template([messages], chat_template=source, continue_final_message=True)
    text = render(source, messages, add_generation_prompt=False, continue_final_message=True)
    assert text == expected[0]
    assert messages[-1]["content"] == last


def test_a_message_that_the_template_drops_cannot_be_continued() -> None:
    error = refused("{{ messages[0].content }}", TALK, add_generation_prompt=False, continue_final_message=True)
    assert "cannot be continued" in error.message
    assert error.param == "continue_final_message"


def test_a_template_refuses_in_its_own_words() -> None:
    source = "{% if messages[0].role != 'system' %}{{ raise_exception('begin with a system message') }}{% endif %}"
    error = refused(source)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert error.message == "the chat template refuses: begin with a system message"
    assert error.param == "messages"


@pytest.mark.parametrize(
    "source", ["{{ 1 // 0 }}", "{{ messages['x'] + 1 }}", "{{ messages[0].content + 3 }}", "{{ nothing.of.the.kind }}"]
)
def test_what_goes_wrong_within_a_template_is_the_requests_error(source: str) -> None:
    assert refused(source).code is ErrorCode.INVALID_REQUEST


def test_a_template_that_does_not_parse_says_where() -> None:
    error = refused("{% for m in messages %}")
    assert error.code is ErrorCode.UNSUPPORTED
    assert "not sound" in error.message


def test_a_model_without_a_template_takes_prompts_only() -> None:
    with pytest.raises(SageLLMError, match="has no chat template") as caught:
        ChatTemplates().render(USER)
    assert caught.value.code is ErrorCode.UNSUPPORTED


def test_tools_that_the_template_would_drop_are_refused() -> None:
    error = refused(CHATML, tools=TOOLS)
    assert (error.code, error.param) == (ErrorCode.UNSUPPORTED, "tools")


def test_arguments_reach_the_template() -> None:
    assert render(RICH, arguments={"enable_thinking": True}).endswith("1thinking")
    assert render(RICH, arguments={"enable_thinking": False}).endswith("1")


@pytest.mark.parametrize("name", ["enable_thought", "range", "raise_exception"])
def test_arguments_that_the_template_would_drop_are_refused(name: str) -> None:
    error = refused(RICH, arguments={name: True})
    assert f"does not read {name!r}; the names it reads are: bos_token, enable_thinking" in error.message
    assert error.param == "chat_template_kwargs"


def test_arguments_cannot_take_the_place_of_a_requests_own_fields() -> None:
    assert "has a field of its own" in refused(CHATML, arguments={"messages": []}).message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages[0].__class__.__name__ }}",
        "{{ namespace.__init__.__globals__ }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    assert refused(source).code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(
    "source",
    ["{{ 'x' * 100000000 }}", "{{ 100000000 * [1] }}", "{{ 10 ** 1000000 }}", "{{ range(10000000) | list }}"],
)
def test_a_template_cannot_fill_the_memory(source: str) -> None:
    assert refused(source).code is ErrorCode.INVALID_REQUEST


def test_a_template_cannot_write_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_module, "MAX_RENDERED", 10_000)
    assert "more than 10000 characters" in refused("{% for i in range(99999) %}xxxxxxxxxx{% endfor %}").message


def test_arithmetic_that_templates_do_is_untouched() -> None:
    assert render("{{ 'ab' * 3 }} {{ 6 * 7 }} {{ 2 ** 10 }} {{ [0] * 2 }} {{ 2 * 1.5 }}") == "ababab 42 1024 [0, 0] 3.0"


def test_dates_are_those_of_today() -> None:
    before = dt.datetime.now().astimezone().strftime("%Y")
    after = dt.datetime.now().astimezone().strftime("%Y")
    assert render("{{ strftime_now('%Y') }}") in (before, after)


def test_json_is_written_as_models_saw_it() -> None:
    assert render("{{ {'b': '<é>', 'a': 1} | tojson }}") == '{"b": "<é>", "a": 1}'


def test_a_mention_is_found_in_any_template() -> None:
    chat = ChatTemplates({"default": "a", "tool_use": "developer"})
    assert chat.mentions("developer")
    assert not chat.mentions("system")


CALL = "{% for m in messages %}{% for c in m.tool_calls or [] %}"
END = "{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("body", "as_text"),
    [
        ("{{ c.function.arguments | tojson }}", False),
        ("{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}", False),
        ("{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}", False),
        ("{{ 'json: ' + c.function.arguments }}", True),
        ("{{ c.function.arguments }}", True),
        ("{{ raise_exception('no calls here') }}", False),
        ("{{ c.function.name }}", False),
    ],
)
def test_a_template_shows_whether_it_wants_arguments_as_text(body: str, as_text: bool) -> None:
    chat = ChatTemplates({"default": CALL + body + END})
    for _ in range(2):
        assert chat.takes_arguments_as_text(tools=False) is as_text


def test_what_a_template_reads_is_known_and_an_unsound_one_reads_nothing() -> None:
    chat = ChatTemplates({"default": "{{ messages }}", "tool_use": "{% if tools %}{{ x }}{% endif %}"})
    assert chat.reads("tools")
    assert chat.reads("x")
    assert not chat.reads("reasoning_effort")
    assert not ChatTemplates({"default": "{% broken"}).reads("messages")
