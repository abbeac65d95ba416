"""Look-up: a draft is what followed the longest earlier match, as a search through the whole text finds it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, strategies as st

from sagellm_core.executor.drafting.ngram import NgramIndex


def looked_up(text: list[int], size: int, count: int) -> list[int]:
    """The same by trying every place; the latest of equally long matches."""
    best, longest = -1, 0
    for place in range(len(text) - 2, -1, -1):
        length = 0
        while length <= place and text[place - length] == text[-1 - length]:
            length += 1
        if length >= size and length > longest:
            best, longest = place, length
    if best < 0:
        return []
    grown = list(text)
    for place in range(count):
        grown.append(grown[best + 1 + place])
    return grown[len(text) :]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=16), st.integers(1, 4), st.integers(1, 6), st.integers(1, 15))
def test_a_draft_is_what_followed_the_longest_match_however_the_text_grew(
    text: list[int], size: int, count: int, first: int
) -> None:
    index = NgramIndex(size)
    tokens = np.array(text, dtype=np.int32)
    for length in range(min(first, len(text)), len(text) + 1):
        assert list(index.continuation(tokens[:length], count)) == looked_up(text[:length], size, count)


def test_a_text_that_repeats_itself_is_drafted_beyond_its_end() -> None:
    index = NgramIndex(2)
    assert list(index.continuation(np.array([7, 8, 9, 7, 8, 9, 7, 8], dtype=np.int32), 7)) == [9, 7, 8, 9, 7, 8, 9]


def test_a_match_that_is_too_short_drafts_nothing() -> None:
    index = NgramIndex(3)
    assert list(index.continuation(np.array([1, 2, 3, 4, 5, 2, 3], dtype=np.int32), 4)) == []
    assert list(index.continuation(np.array([1, 2, 3, 4, 5, 2, 3, 4], dtype=np.int32), 1)) == [5]
