"""The choice of an engine for one request, as a function of plain values.

Knows nothing of queues or transports. A choice changes nothing: the caller books it and tells it as ``placed`` before
it asks for the next, so that the decisions of one burst see each other.
"""

from __future__ import annotations

import random
from abc import abstractmethod

import numpy as np

from sagellm_control_plane.board import Board, Floats, Ints, Rows
from sagellm_control_plane.observing import Observer, Subject


class Router(Observer):
    """A way to choose, made without arguments: by a line of our table or an entry point of ``sagellm.policies``."""

    @abstractmethod
    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Choose one of ``rows``: there is at least one, and each could take the request now.

        Args:
            request: What is to be placed.
            board: All engines.
            rows: The candidates, ascending.
            now: Monotonic seconds.
            rng: The only source of chance.
        """


def least(rows: Rows, scores: Ints | Floats, rng: random.Random) -> int:
    """The row of the lowest score; ties are drawn."""
    tied = np.flatnonzero(scores == scores.min())
    at = tied[0] if len(tied) == 1 else tied[rng.randrange(len(tied))]
    return int(rows[at])


def tied_least(rows: Rows, scores: Ints | Floats) -> Rows:
    """All rows of the lowest score."""
    tied: Rows = rows[scores == scores.min()]
    return tied


def column(old: Floats, board: Board, start: float = 0.0) -> Floats:
    """A learner's own column, as long as the board."""
    return np.concatenate([old, np.full(len(board) - len(old), start)]) if len(old) < len(board) else old
