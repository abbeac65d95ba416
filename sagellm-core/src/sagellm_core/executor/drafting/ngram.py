"""Drafts out of the text itself: what it ends in has come before, and goes on as it did then.

Prompt look-up decoding (Saxena 2023; as "n-gram" in vLLM): an answer that quotes, edits or repeats is largely copied.
The longest earlier match is found as LZ77 compressors find theirs, by chains of positions with equal n-grams; a match
may overlap what it continues, which is how a text that repeats itself is drafted to any length.

Plain integers; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagellm_core.executor.base import CacheLayout
from sagellm_core.executor.constraints import Constraints
from sagellm_core.executor.slots import Slots
from sagellm_protocol.devices import DType

from .base import AddDraft

_CANDIDATES = 16
"""Earlier places that are looked at; the latest first, as texts go on as they last did."""
_LONGEST = 32
"""A match this long is as good as any."""


class NgramIndex:
    """Where each n-gram of one text ended.

    Args:
        size: Tokens of an n-gram, the shortest match.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._latest: dict[bytes, int] = {}
        self._before: list[int] = []  # of each position, the one before it where the same n-gram ended; -1 for none

    def continuation(self, tokens: NDArray[np.int32], count: int) -> Sequence[int]:
        """What followed the longest earlier match of the text's end, none or ``count`` tokens.

        Args:
            tokens: The text, ``[L]``; what was given before and more.
            count: Tokens wanted.
        """
        end = len(tokens) - 1
        self._take_in(tokens)
        place = self._latest.get(self._key(tokens, end), -1) if end >= self._size - 1 else -1
        best, longest = -1, 0
        for _ in range(_CANDIDATES):
            if place < 0:
                break
            length = _common(tokens, place, end)
            if length > longest:
                best, longest = place, length
                if length >= _LONGEST:
                    break
            place = self._before[place]
        if best < 0:
            return ()
        # The match ends at ``best`` and its continuation may run into what is being drafted: the period repeats.
        period = end - best
        known: list[int] = tokens[best + 1 : best + 1 + min(count, period)].tolist()
        return [known[place % period] for place in range(count)]

    def _take_in(self, tokens: NDArray[np.int32]) -> None:
        """Note all positions but the last, which is what is looked for."""
        for place in range(len(self._before), len(tokens) - 1):
            if place < self._size - 1:
                self._before.append(-1)
                continue
            key = self._key(tokens, place)
            self._before.append(self._latest.get(key, -1))
            self._latest[key] = place

    def _key(self, tokens: NDArray[np.int32], end: int) -> bytes:
        return tokens[end - self._size + 1 : end + 1].tobytes()


class NgramDrafter:
    """An index for each slot that may have drafts, made when it first may.

    Args:
        slots: All of them.
        min_match: Tokens that must have come before.
    """

    def __init__(self, slots: Slots, min_match: int) -> None:
        self._slots = slots
        self._min_match = min_match
        self._indices: dict[int, NgramIndex] = {}

    def drop(self, slot: int) -> None:
        """Forget a slot's text."""
        self._indices.pop(slot, None)

    def propose(self, wanted: Mapping[int, int], add: AddDraft) -> None:
        """Draft what followed."""
        for slot, count in wanted.items():
            index = self._indices.get(slot)
            if index is None:
                index = self._indices[slot] = NgramIndex(self._min_match)
            text = self._slots.tokens[slot, : self._slots.length[slot]]
            for token in index.continuation(text, count):
                if not add(slot, token):
                    break

    def settle(self, slot: int) -> None:
        """Nothing was kept of drafts."""


@dataclass(frozen=True)
class NgramStage:
    """An :class:`NgramDrafter` to be; it loads nothing and keeps no tensors.

    Attributes:
        min_match: Tokens that must have come before.
    """

    min_match: int
    weight_bytes = 0
    kv_specs = ()

    def drafter(self, layout: CacheLayout, kv_dtype: DType, slots: Slots, constraints: Constraints) -> NgramDrafter:
        """Begin."""
        return NgramDrafter(slots, self.min_match)


def _common(tokens: NDArray[np.int32], place: int, end: int) -> int:
    """How many tokens ending at ``place`` equal those ending at ``end``; counted up to a bound."""
    most = min(_LONGEST, place + 1)
    equal = tokens[place - most + 1 : place + 1][::-1] == tokens[end - most + 1 : end + 1][::-1]
    differing = equal.argmin()
    return most if equal[differing] else int(differing)
