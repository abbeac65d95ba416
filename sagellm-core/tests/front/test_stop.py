"""Stop strings: the same answer however the text is split, and nothing held back that need not be."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from sagellm_core.front.stop import StopMatcher

LETTERS = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


def run(pieces: list[str], stops: list[str], *, include: bool = False) -> tuple[str, str | None]:
    """Text shown and stop string found, pushing pieces until one is."""
    matcher = StopMatcher(stops, include=include)
    shown = ""
    for piece in pieces:
        found = matcher.push(piece)
        shown += found.text
        if found.stop is not None:
            return shown, found.stop
    return shown + matcher.flush(), None


def plain(text: str, stops: list[str], *, include: bool) -> tuple[str, str | None]:
    """The definition: the first to be complete, and of those the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@st.composite
def split(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(LETTERS)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)))))
    return text, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(split(), STOPS, st.booleans())
def test_any_split_of_the_text_gives_what_the_whole_text_gives(
    given_text: tuple[str, list[str]], stops: list[str], include: bool
) -> None:
    text, pieces = given_text
    expected = plain(text, stops, include=include)
    assert run(pieces, stops, include=include) == expected
    assert run([text], stops, include=include) == expected
    assert run(list(text), stops, include=include) == expected


@given(LETTERS, STOPS)
def test_only_what_may_become_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    seen = shown = ""
    for character in text:
        seen += character
        found = matcher.push(character)
        shown += found.text
        if found.stop is not None:
            return
        held = seen[len(shown) :]
        assert seen == shown + held
        beginnings = [size for stop in stops for size in range(1, len(stop)) if seen.endswith(stop[:size])]
        assert len(held) == max(beginnings, default=0)


def test_text_without_a_stop_strings_beginning_passes_at_once() -> None:
    matcher = StopMatcher(["\n\n", "END"])
    assert matcher.push("hello E").text == "hello "
    assert matcher.push("lse").text == "Else"
    assert matcher.push("x\n").text == "x"
    assert matcher.push("y").text == "\ny"
    assert matcher.flush() == ""


@pytest.mark.parametrize(
    ("include", "shown"), [(False, "The answer"), (True, "The answer###")], ids=["left out", "kept"]
)
def test_a_stop_string_is_left_out_unless_asked_for(include: bool, shown: str) -> None:
    assert run(["The ans", "wer#", "##", " more"], ["###"], include=include) == (shown, "###")


def test_of_two_completed_at_once_the_longer_counts() -> None:
    assert run(["xabc"], ["bc", "abc", "c"]) == ("x", "abc")


def test_the_one_completed_first_counts() -> None:
    assert run(["xabcd"], ["abcd", "bc"]) == ("xa", "bc")


def test_what_was_held_back_comes_at_the_end() -> None:
    matcher = StopMatcher(["stop"])
    assert matcher.push("sto").text == ""
    assert matcher.flush() == "sto"
    assert matcher.flush() == ""
    assert matcher.push("p").stop is None


def test_without_stop_strings_everything_passes() -> None:
    assert run(["a", "", "b"], []) == ("ab", None)


def test_long_and_repetitive_stop_strings_cost_no_more_than_their_text() -> None:
    # Quadratic work on this would outlast the test's time limit many times over.
    size = 20_000
    stops = ["a" * size + "b", "a" * (size // 2) + "c"]
    shown, stop = run(["a" * 100] * (3 * size // 100) + ["b"], stops)
    assert (len(shown), stop) == (2 * size, stops[0])
