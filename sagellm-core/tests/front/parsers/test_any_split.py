"""However a text is split, a parser finds the same in it; and what was written as calls is found as calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from parsed import as_values, cut, pieces, whole
from sagellm_core.front.parsing.pieces import Arguments, CallEnd, CallStart, Content, Thought
from sagellm_core.front.reasoning import REASONING_PARSERS
from sagellm_core.front.reasoning.base import ReasoningParser
from sagellm_core.front.tools import TOOL_PARSERS, Harmony

Calls = Sequence[tuple[str, dict[str, Any]]]

MARKERS = sorted({marker for parser in TOOL_PARSERS.values() for marker in parser.markers})
FRAGMENTS = [
    *MARKERS,
    *("<think>", "</think>", "[THINK]", "[/THINK]", "```", "```json\n", "functions.f", " to=functions.g", "analysis"),
    *('{"name": "f", "arguments": {', '{"name": "f", "parameters": {}}', '"a": 1}', "}}", "}", "{", "]", "[", ","),
    *("[f(a=1)]", "f(", "b='x'", "=", ")", '"', "'", "\\", "\\u00e9", "\n", " ", ";", "function", "text", "é", "𝄞"),
]
NASTY = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=6).map("".join)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True).filter(lambda name: name != "function")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NASTY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=3)
CALLS = st.lists(st.tuples(NAMES, OBJECTS), min_size=1, max_size=3)
PLACES = st.lists(st.integers(0, 10_000), max_size=40)


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _object(key: str) -> Callable[[tuple[str, dict[str, Any]]], str]:
    return lambda call: dumps({"name": call[0], key: call[1]})


def _deepseek(calls: Calls) -> str:
    told = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{dumps(given)}\n```<｜tool▁call▁end｜>"
        for name, given in calls
    )
    return f"<｜tool▁calls▁begin｜>{told}<｜tool▁calls▁end｜>"


def _deepseek_31(calls: Calls) -> str:
    told = "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{dumps(given)}<｜tool▁call▁end｜>" for name, given in calls
    )
    return f"<｜tool▁calls▁begin｜>{told}<｜tool▁calls▁end｜>"


def _harmony(calls: Calls) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{dumps(given)}<|call|>"
        for name, given in calls
    )


def _pythonic(calls: Calls) -> str:
    told = (f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" for name, given in calls)
    return f"[{', '.join(told)}]"


WRITERS: dict[str, tuple[str, Callable[[Calls], str]]] = {
    "hermes": (
        "hermes",
        lambda calls: "\n".join(f"<tool_call>\n{_object('arguments')(call)}\n</tool_call>" for call in calls),
    ),
    "hermes, arguments first": (
        "hermes",
        lambda calls: "".join(
            f"<tool_call>{dumps({'arguments': given, 'name': name})}</tool_call>" for name, given in calls
        ),
    ),
    "llama3_json": ("llama3_json", lambda calls: "; ".join(map(_object("parameters"), calls))),
    "llama3_json, tagged": (
        "llama3_json",
        lambda calls: "<|python_tag|>" + "\n".join(map(_object("parameters"), calls)),
    ),
    "pythonic": ("pythonic", _pythonic),
    "pythonic, tagged": ("pythonic", lambda calls: f"<|python_start|>{_pythonic(calls)}<|python_end|>"),
    "mistral": (
        "mistral",
        lambda calls: f"[TOOL_CALLS]{dumps([{'name': name, 'arguments': given} for name, given in calls])}",
    ),
    "mistral, by name": (
        "mistral",
        lambda calls: "".join(f"[TOOL_CALLS]{name}[ARGS]{dumps(given)}" for name, given in calls),
    ),
    "deepseek": ("deepseek", _deepseek),
    "deepseek 3.1": ("deepseek", _deepseek_31),
    "harmony": ("harmony", _harmony),
    "json": ("json", lambda calls: f"```json\n{dumps([{'name': n, 'arguments': a} for n, a in calls])}\n```"),
    "json, as OpenAI has it": (
        "json",
        lambda calls: "\n".join(
            dumps({"type": "function", "id": "x", "function": {"name": n, "arguments": dumps(a)}}) for n, a in calls
        ),
    ),
}


@pytest.mark.parametrize("form", WRITERS)
@given(calls=CALLS, places=PLACES, before=st.sampled_from(["", "Let me see.\n"]))
@settings(deadline=None, max_examples=25)
def test_calls_are_found_however_they_are_split(form: str, calls: Calls, places: list[int], before: str) -> None:
    name, write = WRITERS[form]
    text = write(calls)
    if name == "harmony":
        before = ""
    answer, _, found = whole([TOOL_PARSERS[name]()], cut(before + text, places))
    assert as_values([(function, arguments) for _, function, arguments in found]) == list(calls)
    assert answer == before
    at_once = pieces(TOOL_PARSERS[name](), [before + text])
    assert pieces(TOOL_PARSERS[name](), cut(before + text, places)) == at_once
    assert pieces(TOOL_PARSERS[name](), before + text) == at_once


@pytest.mark.parametrize("form", WRITERS)
@given(calls=CALLS, places=PLACES, length=st.integers(0, 400))
@settings(deadline=None, max_examples=20)
def test_calls_that_are_cut_off_are_the_same_however_they_are_split(
    form: str, calls: Calls, places: list[int], length: int
) -> None:
    name, write = WRITERS[form]
    text = write(calls)[:length]
    assert pieces(TOOL_PARSERS[name](), cut(text, places)) == pieces(TOOL_PARSERS[name](), [text])


@pytest.mark.parametrize("name", TOOL_PARSERS)
@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join), places=PLACES)
@settings(deadline=None, max_examples=80)
def test_any_text_is_the_same_however_it_is_split(name: str, text: str, places: list[int]) -> None:
    found = pieces(TOOL_PARSERS[name](), cut(text, places))
    assert found == pieces(TOOL_PARSERS[name](), [text])
    assert found == pieces(TOOL_PARSERS[name](), text)
    if not any(isinstance(piece, CallStart) for piece in found) and name != "harmony":
        assert "".join(piece.text for piece in found if isinstance(piece, Content)) == text
    _check_order(found)


@pytest.mark.parametrize("name", REASONING_PARSERS)
@given(
    text=st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join),
    places=PLACES,
    opened=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_reasoning_is_the_same_however_it_is_split(name: str, text: str, places: list[int], opened: bool) -> None:
    def parser() -> Any:
        kind = REASONING_PARSERS[name]
        return kind(opened=opened) if issubclass(kind, ReasoningParser) else Harmony(reasoning=opened)

    found = pieces(parser(), cut(text, places))
    assert found == pieces(parser(), [text])
    if name != "harmony":
        assert sum(isinstance(piece, Thought) for piece in found) <= 1


def _check_order(found: Sequence[Any]) -> None:
    """Arguments and ends belong to a call that has begun and has not ended."""
    calling = False
    for piece in found:
        if isinstance(piece, CallStart):
            calling = True
        elif isinstance(piece, (Arguments, CallEnd)):
            assert calling
            calling = isinstance(piece, Arguments)
