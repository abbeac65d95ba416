"""What each family's parser takes for a call, and what it gives back as content."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parsed import as_values, calls_in, pieces, whole
from sagellm_core.front.parsing.pieces import Arguments, CallEnd, CallStart, Content, Thought
from sagellm_core.front.parsing.python_text import MAX_DEPTH
from sagellm_core.front.reasoning.granite import Granite, ThinkResponse
from sagellm_core.front.reasoning.mistral import MistralThink
from sagellm_core.front.reasoning.seed_oss import SeedThink
from sagellm_core.front.reasoning.think import Think
from sagellm_core.front.tools import TOOL_PARSERS, Harmony
from sagellm_core.front.tools.hermes import Hermes

F = [("f", {"a": 1})]
ONE = '{"name": "f", "arguments": {"a": 1}}'
BARE = '{"name": "f", "parameters": {"a": 1}}'
DEEPSEEK = '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
KIMI = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
    '{"a": 1}<|tool_call_end|><|tool_calls_section_end|>'
)
CODER = "<function=f>\n<parameter=a>\n1\n</parameter>\n</function>"
INVOKE = '<invoke name="f">\n<parameter name="a">1</parameter>\n</invoke>'

FOUND: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    ("hermes", f"a<tool_call>{ONE}</tool_call>b<tool_call>{ONE}</tool_call>c", "abc", F * 2),
    ("hermes", f"<tool_call>{ONE}\n{ONE}</tool_call>", "", F * 2),
    ("hermes", f"<tool_call>{ONE}", "", F),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', "", [("f", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", [("f", {})]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", F),
    ("hermes", '<tool_call>{"id": {"x": "}"}, "name": "f", "arguments": {"a": 1}, "n": [1]}</tool_call>', "", F),
    ("hermes", f"  \n<tool_call>{ONE}</tool_call>  \n", "", F),
    ("llama3_json", f" {BARE}", "", F),
    ("llama3_json", f"Sure.\n{BARE}; {BARE}\n", "Sure.\n", F * 2),
    ("llama3_json", '<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": 1}}', "", F),
    ("llama3_json", '{"function": "f", "parameters": {"a": 1}}', "", F),
    ("json", f"[{ONE}, {BARE}]", "", F * 2),
    ("json", f"Now:\n```json\n{ONE}\n```", "Now:\n", F),
    ("json", f"```\n[{ONE}]\n```", "", F),
    ("json", '{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}', "", F),
    ("mistral", f"a[TOOL_CALLS] [{ONE}, {ONE}]", "a", F * 2),
    ("mistral", f"[TOOL_CALLS]{ONE}", "", F),
    ("mistral", '[TOOL_CALLS]f{"a": 1}', "", F),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]f[ARGS]{"a": 1}', "", F * 2),
    ("deepseek", f"a{DEEPSEEK}", "a", F),
    ("deepseek", DEEPSEEK.removeprefix("<｜tool▁calls▁begin｜>"), "", F),
    ("harmony", "Hi", "Hi", []),
    ("harmony", ' to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>', "", F),
    ("harmony", "<|channel|>commentary to=functions.f<|message|><|call|>", "", [("f", {})]),
    ("harmony", "<|channel|>final<|message|>Hi<|return|>", "Hi", []),
    ("harmony", '<|channel|>analysis to=functions.f<|message|>{"a": 1}<|call|>', "", F),
    ("kimi", f"a{KIMI}", "a", F),
    ("kimi", KIMI.replace("functions.f:0", "f"), "", F),
    ("kimi", KIMI.removeprefix("<|tool_calls_section_begin|>"), "", F),
    ("granite", f"a<|tool_call|>[{ONE}, {ONE}]b", "ab", F * 2),
    ("granite", f"<|tool_call|>[{ONE}]<|/tool_call|>", "", F),
    ("granite", f"<|tool_call|>{ONE}", "", F),
    ("qwen3_coder", f"Well:\n\n<tool_call>\n{CODER}\n</tool_call>", "Well:\n\n", F),
    ("qwen3_coder", f"<tool_call>\n{CODER}\n{CODER}\n</tool_call>\nb", "\nb", F * 2),
    ("qwen3_coder", f"{CODER}\n</tool_call>", "", F),
    ("qwen3_coder", CODER, "", F),
    ("qwen3_coder", "<tool_call>\n<function=f>\n</function>\n</tool_call>", "", [("f", {})]),
    ("qwen3_coder", CODER.replace("\n", ""), "", F),
    ("glm", "\n<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>", "", F),
    ("glm", "a<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>b", "ab", F),
    ("glm", "<tool_call>f\n</tool_call>\n<tool_call>f</tool_call>", "", [("f", {})] * 2),
    ("minimax", f"<minimax:tool_call>\n{INVOKE}\n{INVOKE}\n</minimax:tool_call>", "", F * 2),
    ("seed_oss", f"<seed:tool_call>\n{CODER}\n</seed:tool_call>", "", F),
    ("pythonic", "[f(a=1)]", "", F),
    ("pythonic", "Well:\n[f(a=1), f(a=1,),]", "Well:\n", F * 2),
    ("pythonic", "<|python_start|>[f()]<|python_end|>", "", [("f", {})]),
    ("pythonic", "[a.f(x=None, y=True, z=(1, 2), w={'k': [-1.5, 1_000, 0x10, .5]})]", "",
     [("a.f", {"x": None, "y": True, "z": [1, 2], "w": {"k": [-1.5, 1000, 16, 0.5]}})]),
    ("pythonic", r"""[f(a='it\'s "\x41\u00e9\U0001f600\101\q"', b="\ud83d\ude00")]""", "",
     [("f", {"a": 'it\'s "A\u00e9\U0001f600A\\q"', "b": "\U0001f600"})]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "content", "calls"), FOUND, ids=[f"{n}: {t}" for n, t, _, _ in FOUND])
def test_calls_are_found(name: str, text: str, content: str, calls: list[tuple[str, Any]]) -> None:
    answer, found = calls_in(name, text)
    assert as_values(found) == calls
    assert answer == content


NONE = [
    ("hermes", "<tool_call>f()</tool_call>"),
    ("hermes", "<tool_call>{'name': 'f'}</tool_call>"),
    ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arg'),
    ("hermes", f'<tool_call>{{"name": "{"f" * 513}", "arguments": {{}}}}</tool_call>'),
    ("hermes", " \n "),
    ("hermes", "if a <tool"),
    ("llama3_json", '{"name": "Ada", "born": 1815}'),
    ("llama3_json", '{"name": "f"}'),
    ("llama3_json", '{"answer": {"name": "f", "parameters": {}}}'),
    ("llama3_json", f"Such as {BARE}"),
    ("llama3_json", '{\n  "items": [\n    {"name": "f", "parameters": 1}]}'),
    ("llama3_json", "<|python_tag|>print(1)"),
    ("json", "[1, 2, 3]"),
    ("json", '```json\n{"a": 1}\n```'),
    ("json", '```python\nprint({"name": 1})\n```'),
    ("mistral", "[TOOL_CALLS][]"),
    ("mistral", "[TOOL_CALLS] so be it"),
    ("mistral", "[TOOL_CALLS]f[ARGS](1)"),
    ("mistral", "[TOOL_CALLS]f[CALL_ID][ARGS]{}"),
    ("deepseek", "<｜tool▁calls▁begin｜>well"),
    ("deepseek", "<｜tool▁call▁begin｜>tool<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜>"),
    ("kimi", "<|tool_calls_section_begin|>well"),
    ("kimi", "<|tool_call_begin|>functions.:0<|tool_call_argument_begin|>{}<|tool_call_end|>"),
    ("granite", "<|tool_call|>[]"),
    ("qwen3_coder", f"<tool_call>\n{ONE}\n</tool_call>"),
    ("qwen3_coder", "Write <function=name> first."),
    ("qwen3_coder", "<tool_call>\n<function=f>"),
    ("glm", f"<tool_call>\n{ONE}\n</tool_call>"),
    ("glm", "<tool_call>f(a)</tool_call>"),
    ("glm", "<tool_call></tool_call>"),
    ("minimax", '<minimax:tool_call>\n<invoke name="f>'),
    ("pythonic", "[1, 2]"),
    ("pythonic", "[link](http://a.b)"),
    ("pythonic", "[f(1)]"),
    ("pythonic", "[f(a==1)]"),
    ("pythonic", "see [f(a=1)]"),
]


@pytest.mark.parametrize(("name", "text"), NONE, ids=[f"{name}: {text[:40]}" for name, text in NONE])
def test_what_is_no_call_is_given_back_whole(name: str, text: str) -> None:
    assert calls_in(name, text) == (text, [])


def test_a_call_that_breaks_off_stands_as_far_as_it_was_told_and_the_rest_is_content() -> None:
    assert pieces(Hermes(), ['<tool_call>{"name": "f", "arguments": {"a": ]}} and so on']) == [
        *(CallStart("f"), Arguments('{"a": ]'), CallEnd()),
        Content("}} and so on"),
    ]
    assert calls_in("mistral", f"[TOOL_CALLS][{ONE}, 7]") == (", 7]", [("f", '{"a": 1}')])
    assert calls_in("pythonic", "[f(a=1, b=g(2))]") == ("(2))]", [("f", '{"a": 1, "b": ')])
    deep = "[" * (MAX_DEPTH + 1)
    assert calls_in("pythonic", f"[f(a={deep})]")[0].startswith("[)]")


def test_values_that_stand_as_plain_text_are_what_the_schema_says_they_are() -> None:
    properties: dict[str, Any] = {
        "zip": {"type": "string"},
        "days": {"type": "integer"},
        "hot": {"type": "boolean"},
        "until": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "at": {"$ref": "#/$defs/place"},
        "tags": {"type": ["array", "string"]},
        "size": {"enum": ["1", "2"]},
        "any": {},
    }
    schema = {"properties": properties, "$defs": {"place": {"type": "object"}}}
    for written, key, value in [
        ("01234", "zip", "01234"),
        ('"x"', "zip", '"x"'),
        ("\n two\nlines \n", "zip", "\n two\nlines \n"),
        ("</parameter> <b>", "zip", "</parameter> <b>"),
        ("", "zip", ""),
        ("null", "zip", "null"),
        (" 3 ", "days", 3),
        ("three", "days", "three"),
        ("3.5", "days", "3.5"),
        ("True", "hot", True),
        ("false", "hot", False),
        ("null", "until", None),
        ("None", "until", None),
        ("noon", "until", "noon"),
        ('{"x": [1.50, "é"]}', "at", {"x": [1.5, "é"]}),
        ("{'x': (1, None)}", "at", {"x": [1, None]}),
        ("[1, 2]", "tags", [1, 2]),
        ("[1, 2", "tags", "[1, 2"),
        ("2", "size", "2"),
        ("7", "any", 7),
        ("seven", "any", "seven"),
        ("7", "undeclared", 7),
        ("NaN", "any", "NaN"),
    ]:
        text = f"<function=f>\n<parameter={key}>\n{written}\n</parameter>\n</function>"
        [(_, _, arguments)] = whole([TOOL_PARSERS["qwen3_coder"]({"f": schema})], [text])[2]
        assert json.loads(arguments) == {key: value}
        assert isinstance(value, bool) is isinstance(json.loads(arguments)[key], bool)


def test_schemas_that_refer_to_one_another_many_times_are_looked_into_once() -> None:
    defined: dict[str, Any] = {f"t{level}": {"anyOf": [{"$ref": f"#/$defs/t{level + 1}"}] * 40} for level in range(20)}
    defined["t20"] = {"anyOf": [{"$ref": "#/$defs/t0"}, {"type": "string"}]}
    schema = {"properties": {"a": {"$ref": "#/$defs/t0"}, "b": {"$ref": "#/$defs/b"}}, "$defs": defined}
    defined["b"] = {"anyOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}
    text = "<function=f><parameter=a>1</parameter><parameter=b>1</parameter></function>"
    [(_, _, arguments)] = whole([TOOL_PARSERS["seed_oss"]({"f": schema})], [text])[2]
    assert json.loads(arguments) == {"a": 1, "b": "1"}


def test_text_in_tags_is_told_while_it_is_written() -> None:
    parser = TOOL_PARSERS["qwen3_coder"]({"f": {"properties": {"a": {"type": "string"}}}})
    assert parser.push("<tool_call>\n<function=f>\n<parameter=a>\n") == [CallStart("f"), Arguments('{"a": "')]
    assert parser.push('say "hi"\n') == [Arguments('say \\"hi\\"')]
    assert parser.push("</parameter>\n") == []
    assert parser.push("</function>") == [Arguments('"}'), CallEnd()]


def test_calls_in_tags_that_break_off_stand_as_far_as_they_were_told() -> None:
    begun = CODER[: CODER.index("</function>")]
    assert calls_in("qwen3_coder", f"{begun}<parameter=b so") == ("<parameter=b so", [("f", '{"a": 1')])
    assert calls_in("qwen3_coder", f"{begun}so") == ("", [("f", '{"a": 1\n</parameter>\nso')])
    assert calls_in("qwen3_coder", f"{begun}<param") == ("<param", [("f", '{"a": 1')])
    assert calls_in("qwen3_coder", begun.rstrip()) == ("", [("f", '{"a": 1')])
    assert calls_in("qwen3_coder", "<function=f>\n<parameter=a>\n12") == ("", [("f", '{"a": 12')])
    assert calls_in("glm", "<tool_call>f\n<arg_key>a</arg_key>\noops") == ("<arg_key>a</arg_key>\noops", [("f", "")])


def test_a_call_that_is_cut_off_has_no_end() -> None:
    assert pieces(Hermes(), ['<tool_call>{"name": "f", "arguments": {"a": "b']) == [
        CallStart("f"),
        Arguments('{"a": "b'),
    ]


def test_arguments_are_exactly_the_models_own_text() -> None:
    written = '{ "a" : "\\u00e9é\\n</tool_call>" ,\n"b":1.0 }'
    _, calls = calls_in("hermes", f'<tool_call>{{"name": "f", "arguments": {written}}}</tool_call>')
    assert calls == [("f", written)]


def test_a_mark_that_failed_does_not_hide_the_call_after_it() -> None:
    assert calls_in("hermes", f"<tool_call><tool_call>{ONE}</tool_call>") == ("<tool_call>", [("f", '{"a": 1}')])


def test_an_id_that_the_model_gives_is_kept() -> None:
    found = whole([TOOL_PARSERS["mistral"]()], ['[TOOL_CALLS]f[CALL_ID]abc123XYZ[ARGS]{"a": 1}'])
    assert found[2] == [("abc123XYZ", "f", '{"a": 1}')]
    assert whole([TOOL_PARSERS["kimi"]()], [KIMI])[2] == [("functions.f:0", "f", '{"a": 1}')]


@pytest.mark.parametrize("name", TOOL_PARSERS)
def test_text_without_calls_is_told_at_once(name: str) -> None:
    parser = TOOL_PARSERS[name]()
    for word in ("Hello", ", world", "!\nHow", " are you?"):
        assert parser.push(word) == [Content(word)]
    assert parser.flush() == []


def test_ids_are_made_in_the_familys_own_form() -> None:
    assert TOOL_PARSERS["hermes"].new_id().startswith("call_")
    made = {TOOL_PARSERS["mistral"].new_id() for _ in range(50)}
    assert len(made) == 50
    assert all(len(one) == 9 and one.isalnum() for one in made)


@pytest.mark.parametrize(
    ("parser", "text", "reasoning", "answer"),
    [
        (Think(), "<think>\nhm\n\nso\n</think>\n\nyes", "hm\n\nso", "yes"),
        (Think(), "\n<think>hm</think>", "hm", ""),
        (ThinkResponse(), "<think>hm</think>\n<response>yes</response>\n", "hm", "yes\n"),
        (ThinkResponse(opened=True), "hm</think>yes", "hm", "yes"),
        (Granite(), "Here is my thought process:\nhm\n\nHere is my response:\n\nyes", "hm", "yes"),
        (Granite(), "Here is my answer", "", "Here is my answer"),
        (SeedThink(), "<seed:think>hm</seed:think>yes", "hm", "yes"),
        (Think(), "<think>hm", "hm", ""),
        (Think(), "yes <think>no</think>", "", "yes <think>no</think>"),
        (Think(), "<thin", "", "<thin"),
        (Think(opened=True), "hm</think>yes</think>", "hm", "yes</think>"),
        (Think(opened=True), "hm</thin", "hm</thin", ""),
        (Think(opened=True), "</think>yes", "", "yes"),
        (MistralThink(), "[THINK]hm[/THINK]yes", "hm", "yes"),
        (Harmony(reasoning=True), "<|channel|>analysis<|message|>hm<|end|>"
         "<|start|>assistant<|channel|>final<|message|>yes<|return|>", "hm", "yes"),
        (Harmony(reasoning=False), "<|channel|>analysis<|message|>hm<|end|>", "", "hm"),
        (Harmony(reasoning=True), "<|channel|>commentary to=python<|message|>1+1<|call|>", "1+1", ""),
        (Harmony(reasoning=True), "<|channel|>ana", "", ""),
    ],
)  # fmt: skip
def test_reasoning_is_told_apart(parser: Any, text: str, reasoning: str, answer: str) -> None:
    for split in ([text], list(text)):
        found = pieces(type(parser)(**_options(parser)), split)
        assert "".join(piece.text for piece in found if isinstance(piece, Thought)) == reasoning
        assert "".join(piece.text for piece in found if isinstance(piece, Content)) == answer


def _options(parser: Any) -> dict[str, Any]:
    return {"reasoning": parser._reasoning} if isinstance(parser, Harmony) else {"opened": parser._opened}


def test_calls_are_not_looked_for_in_reasoning() -> None:
    answer, reasoning, calls = whole(
        [Think(), Hermes()], [f"<think><tool_call>{ONE}</tool_call></think>\n<tool_call>{ONE}</tool_call>"]
    )
    assert reasoning == f"<tool_call>{ONE}</tool_call>"
    assert (answer, calls) == ("", [("id0", "f", '{"a": 1}')])
