"""In turn, whatever the load."""

from __future__ import annotations

import random

import numpy as np

from sagellm_control_plane.board import Board, Rows
from sagellm_control_plane.observing import Subject

from .base import Router, column


class RoundRobin(Router):
    """The engine that was chosen longest ago.

    Remembers when each was chosen, so that one that was full or new when its turn came does not shift the others.
    """

    def __init__(self) -> None:
        self._turn = 0
        self._chosen = np.zeros(0)

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Take the next one in turn."""
        return int(rows[self._chosen[rows].argmin()])

    def joined(self, row: int, board: Board) -> None:
        """A newcomer is next."""
        self._chosen = column(self._chosen, board)
        self._chosen[row] = 0.0

    def placed(self, request: Subject, row: int, now: float) -> None:
        """Its turn is over."""
        self._turn += 1
        self._chosen[row] = self._turn
