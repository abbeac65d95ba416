"""The sequences that wait for admission, in order of service.

Knows nothing of blocks or budgets.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from .sequence import Sequence


def _latest_first(sequence: Sequence) -> tuple[int, int]:
    return -sequence.key[0], -sequence.key[1]


class WaitingQueue:
    """Sequences by priority, then arrival. One that was preempted keeps its arrival, and so its place."""

    def __init__(self) -> None:
        # Kept last first, so that the head leaves from the list's end.
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        """From the head; not to be changed while iterated."""
        return reversed(self._sequences)

    @property
    def head(self) -> Sequence | None:
        """The first in order of service."""
        return self._sequences[-1] if self._sequences else None

    def add(self, sequence: Sequence) -> None:
        """Put it where its key belongs."""
        insort(self._sequences, sequence, key=_latest_first)

    def remove(self, sequence: Sequence) -> None:
        """Take it out, wherever it stands."""
        place = bisect_left(self._sequences, _latest_first(sequence), key=_latest_first)
        assert self._sequences[place] is sequence, "the sequence is not waiting"
        del self._sequences[place]
