"""Any engine, with equal chance."""

from __future__ import annotations

import random

from sagellm_control_plane.board import Board, Rows
from sagellm_control_plane.observing import Subject

from .base import Router


class Draw(Router):
    """A uniform draw."""

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Draw one."""
        return int(rows[rng.randrange(len(rows))])
