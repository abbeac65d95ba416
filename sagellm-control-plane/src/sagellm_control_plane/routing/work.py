"""Prompt tokens that each engine still has to compute, as far as can be told from outside."""

from __future__ import annotations

import numpy as np

from sagellm_control_plane.board import Board, Floats

from .base import column


class PendingWork:
    """What was placed and has not begun, less what was found in the cache: a column of tokens."""

    def __init__(self) -> None:
        self.tokens: Floats = np.zeros(0)
        """By row."""
        self._placed: dict[int, tuple[int, float]] = {}

    def joined(self, row: int, board: Board) -> None:
        """An engine took a row."""
        self.tokens = column(self.tokens, board)
        self.tokens[row] = 0.0

    def gone(self, row: int) -> None:
        """What was placed there will not be done there."""
        self._placed = {number: entry for number, entry in self._placed.items() if entry[0] != row}

    def placed(self, number: int, row: int, tokens: float) -> None:
        """A request with that much to compute was given to an engine."""
        self._placed[number] = (row, tokens)
        self.tokens[row] += tokens

    def done(self, number: int) -> float | None:
        """It began, or left before; what it was placed with, the first time."""
        found = self._placed.pop(number, None)
        if found is None:
            return None
        row, tokens = found
        self.tokens[row] -= tokens
        return tokens
