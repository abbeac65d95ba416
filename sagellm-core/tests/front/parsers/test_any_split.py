"""However a text is split, a parser finds the same in it; and what was written as calls is found as calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings, strategies as st

from parsed import as_values, cut, pieces, whole
from sagellm_core.front.parsing.pieces import Arguments, CallEnd, CallStart, Content, Thought
from sagellm_core.front.reasoning import REASONING_PARSERS
from sagellm_core.front.reasoning.base import ReasoningParser
from sagellm_core.front.tools import TOOL_PARSERS, Harmony, ToolParser
from sagellm_core.front.tools.schemas import kind_of
from sagellm_core.front.tools.xml_calls import XMLCalls
from written_calls import WRITERS, Calls, plain

MARKERS = sorted({marker for parser in TOOL_PARSERS.values() for marker in parser.markers})
XML = [form for form in TOOL_PARSERS.values() if issubclass(form, XMLCalls)]
TAGS = sorted({part for form in XML for part in (*form.call, *form.argument, *(form.block or ()))} - {"", ">", '">'})
FRAGMENTS = [
    *MARKERS,
    *TAGS,
    *(
        "<think>",
        "</think>",
        "[THINK]",
        "[/THINK]",
        "<response>",
        "</response>",
        "functions.f:0",
        "\n\n",
        "True",
        "```",
        "```json\n",
        "functions.f",
        " to=functions.g",
        "analysis",
    ),
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


def schemas_of(calls: Calls) -> dict[str, Any]:
    """What tells plain text from other values: a schema of each argument's kind."""
    schemas: dict[str, Any] = {}
    for name, arguments in calls:
        properties = schemas.setdefault(name, {"properties": {}})["properties"]
        properties.update({key: {"type": kind_of(value)} for key, value in arguments.items()})
    return schemas


def made(name: str, calls: Calls) -> ToolParser:
    return TOOL_PARSERS[name](schemas_of(calls))


def tells(name: str, calls: Calls) -> bool:
    """Whether a form can tell these calls at all: text in tags ends where a tag ends it."""
    form = TOOL_PARSERS[name]
    if not issubclass(form, XMLCalls):
        return True
    kinds: dict[str, set[str]] = {}
    for function, arguments in calls:
        for key, value in arguments.items():
            kinds.setdefault(f"{function}.{key}", set()).add(kind_of(value))
    inside = [text for _, arguments in calls for text in map(plain, arguments.values())]
    return all(len(one) == 1 for one in kinds.values()) and not any(form.argument[2] in text for text in inside)


@pytest.mark.parametrize("form", WRITERS)
@given(calls=CALLS, places=PLACES, before=st.sampled_from(["", "Let me see.\n"]))
@settings(deadline=None, max_examples=25)
def test_calls_are_found_however_they_are_split(form: str, calls: Calls, places: list[int], before: str) -> None:
    name, write = WRITERS[form]
    assume(tells(name, calls))
    text = write(calls)
    if name == "harmony":
        before = ""
    answer, _, found = whole([made(name, calls)], cut(before + text, places))
    assert as_values([(function, arguments) for _, function, arguments in found]) == list(calls)
    assert answer == before
    at_once = pieces(made(name, calls), [before + text])
    assert pieces(made(name, calls), cut(before + text, places)) == at_once
    assert pieces(made(name, calls), before + text) == at_once


@pytest.mark.parametrize("form", WRITERS)
@given(calls=CALLS, places=PLACES, length=st.integers(0, 400))
@settings(deadline=None, max_examples=20)
def test_calls_that_are_cut_off_are_the_same_however_they_are_split(
    form: str, calls: Calls, places: list[int], length: int
) -> None:
    name, write = WRITERS[form]
    text = write(calls)[:length]
    assert pieces(made(name, calls), cut(text, places)) == pieces(made(name, calls), [text])


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
