"""Where the first token has come soonest of late."""

from __future__ import annotations

import random

import numpy as np

from sagellm_control_plane.board import Board, Rows
from sagellm_control_plane.observing import Subject

from .base import Router, tied_least
from .least_load import LeastLoad


class LowestLatency(Router):
    """Lowest measured time to the first token; an engine not yet measured comes first. Ties go by load."""

    def __init__(self) -> None:
        self._between = LeastLoad()

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Compare measured latencies; ties go by load."""
        tied = tied_least(rows, np.nan_to_num(board.latency_s[rows], nan=0.0))
        return self._between.choose(request, board, tied, now, rng)
