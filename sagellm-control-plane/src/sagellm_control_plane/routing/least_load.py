"""Where the least work waits and is held, counted in tokens rather than in requests."""

from __future__ import annotations

import random

from sagellm_control_plane.board import Board, Rows
from sagellm_control_plane.observing import Subject

from .base import Router, least, tied_least


class LeastLoad(Router):
    """Fewest tokens, then fewest sequences, then chance."""

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Compare every engine; ties are drawn."""
        tied = tied_least(rows, board.load(rows))
        return int(tied[0]) if len(tied) == 1 else least(tied, board.sequences[tied], rng)
