"""The less loaded of two drawn engines: nearly as even as looking at all of them."""

from __future__ import annotations

import random

from sagellm_control_plane.board import Board, Rows
from sagellm_control_plane.observing import Subject

from .base import Router


class PowerOfTwo(Router):
    """Two choices (Mitzenmacher 2001), compared by tokens; the same cost however many engines there are."""

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Draw two without repetition and take the less loaded."""
        if len(rows) == 1:
            return int(rows[0])
        pair = rows[rng.sample(range(len(rows)), 2)]
        first, second = board.load(pair), board.sequences[pair]
        return int(pair[0] if (first[0], second[0]) <= (first[1], second[1]) else pair[1])
