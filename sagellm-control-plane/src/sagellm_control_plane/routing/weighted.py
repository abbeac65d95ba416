"""In proportion to weights, for canaries and unequal machines."""

from __future__ import annotations

import random

import numpy as np

from sagellm_control_plane.board import Board, Floats, Rows
from sagellm_control_plane.observing import Subject

from .base import Router, column, least
from .least_load import LeastLoad


class Weighted(Router):
    """Stride scheduling (Waldspurger 1995): the engine that is furthest behind its share, whatever the load.

    Each engine gets its share to within one request. One that could not take its turn, or came late, is owed one
    request at most. An engine of weight 0 gets nothing while another of any weight is there.
    """

    def __init__(self) -> None:
        self._passed: Floats = np.zeros(0)
        self._time = 0.0
        self._board: Board | None = None
        self._otherwise = LeastLoad()

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Take the one whose next pass is the smallest."""
        weighed = rows[board.weight[rows] > 0]
        if not len(weighed):
            return self._otherwise.choose(request, board, rows, now, rng)
        return least(weighed, np.maximum(self._passed[weighed] + 1 / board.weight[weighed], self._time), rng)

    def joined(self, row: int, board: Board) -> None:
        """A newcomer is owed nothing."""
        self._board, self._passed = board, column(self._passed, board)
        self._passed[row] = 0.0

    def placed(self, request: Subject, row: int, now: float) -> None:
        """Its pass moves by a stride."""
        assert self._board is not None
        weight = float(self._board.weight[row])
        if weight > 0:
            self._passed[row] = max(self._passed[row], self._time - 1 / weight)
            self._time = max(self._time, float(self._passed[row]))
            self._passed[row] += 1 / weight
