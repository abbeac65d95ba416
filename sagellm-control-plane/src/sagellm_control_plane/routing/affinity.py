"""The same engine for the same user or conversation, so that what is cached for them is found again."""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right

import numpy as np

from sagellm_control_plane.board import Board, Rows
from sagellm_control_plane.observing import Subject

from .base import Router
from .least_load import LeastLoad

POINTS = 64
"""Points of each engine on the ring: shares then differ by about an eighth."""


class Affinity(Router):
    """Consistent hashing (Karger et al. 1997) by user, else by session; least load for requests that name neither.

    Nothing is remembered of users: one moves only while their engine is full or gone, and every plane chooses alike.
    """

    def __init__(self) -> None:
        self._otherwise = LeastLoad()
        self._ring: list[tuple[int, int]] = []
        self._points: list[int] = []

    def joined(self, row: int, board: Board) -> None:
        """Put an engine on the ring."""
        name = board.engine_ids[row]
        self._set([*self._ring, *((_point(f"{name}\0{i}"), row) for i in range(POINTS))])

    def gone(self, row: int) -> None:
        """Take it off."""
        self._set([entry for entry in self._ring if entry[1] != row])

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Take the first candidate at or after this user's point."""
        whose = request.user or request.session_id
        if whose is None or not self._ring:
            return self._otherwise.choose(request, board, rows, now, rng)
        start = bisect_right(self._points, _point(whose))
        for step in range(len(self._ring)):
            row = self._ring[(start + step) % len(self._ring)][1]
            at = int(np.searchsorted(rows, row))
            if at < len(rows) and rows[at] == row:
                return row
        return self._otherwise.choose(request, board, rows, now, rng)

    def _set(self, ring: list[tuple[int, int]]) -> None:
        self._ring = sorted(ring)
        self._points = [point for point, _ in self._ring]


def _point(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
