"""Stop strings: a state machine over the text of one choice that finds the first to be completed.

Any split of the text into pieces gives the same result, and only what might yet become a stop string is held back.

Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """What a piece of text led to.

    Attributes:
        text: What may be shown now.
        stop: The stop string that was completed, if one was; nothing comes after it.
    """

    text: str
    stop: str | None = None


class StopMatcher:
    """Looks for stop strings in one choice's text.

    Each stop string is followed by its own Knuth-Morris-Pratt automaton, so that a character costs the same however
    long the strings are and however the text repeats itself.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """Look for any of ``stops``.

        Args:
            stops: Not empty strings; of two that are completed by the same character the longer one counts.
            include: Leave the stop string in the text.
        """
        # Longest first: of several completed at once the first in this order wins.
        self._stops = tuple(sorted(dict.fromkeys(stops), key=len, reverse=True))
        self._tables = tuple(_failures(stop) for stop in self._stops)
        self._states = [0] * len(self._stops)
        self._first = frozenset(stop[0] for stop in self._stops)
        self._include = include
        self._held = ""

    def push(self, text: str) -> Found:
        """Take in the next piece."""
        if not self._stops or (not self._held and self._first.isdisjoint(text)):
            return Found(text)
        buffer = self._held + text
        for at, character in enumerate(text, len(self._held)):
            stop = self._step(character)
            if stop is not None:
                self._held = ""
                end = at + 1
                return Found(buffer[: end if self._include else end - len(stop)], stop)
        keep = len(buffer) - max(self._states)
        self._held = buffer[keep:]
        return Found(buffer[:keep])

    def flush(self) -> str:
        """What was held back, once no more will come."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return held

    def _step(self, character: str) -> str | None:
        completed = None
        for number, stop in enumerate(self._stops):
            state, table = self._states[number], self._tables[number]
            while state and stop[state] != character:
                state = table[state - 1]
            if stop[state] == character:
                state += 1
            if state == len(stop):
                completed = completed or stop
                state = table[state - 1]
            self._states[number] = state
        return completed


def _failures(pattern: str) -> list[int]:
    """For each prefix of ``pattern``, the length of its longest proper border (Knuth, Morris & Pratt 1977)."""
    table = [0] * len(pattern)
    border = 0
    for at in range(1, len(pattern)):
        while border and pattern[border] != pattern[at]:
            border = table[border - 1]
        if pattern[border] == pattern[at]:
            border += 1
        table[at] = border
    return table
