"""Where a token costs the least: devices occupied over tokens a second."""

from __future__ import annotations

import random

import numpy as np

from sagellm_control_plane.board import Board, Rows
from sagellm_control_plane.observing import Subject

from .base import Router, tied_least
from .least_load import LeastLoad


class Cheapest(Router):
    """Lowest price a token in device-seconds; while one is unmeasured, the least loaded of those with fewest devices.

    Any price a device-hour scales all alike, so that none is needed.
    """

    def __init__(self) -> None:
        self._between = LeastLoad()

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Compare prices; ties go by load."""
        devices, throughput = board.devices[rows], board.throughput_tps[rows]
        tied = tied_least(rows, devices if np.isnan(throughput).any() else devices / throughput)
        return self._between.choose(request, board, tied, now, rng)
