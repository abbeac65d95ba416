"""Near to where the request's keys and values are: on the same devices, host or rack, weighed against load."""

from __future__ import annotations

import random
from collections import OrderedDict

import numpy as np

from sagellm_control_plane.board import UNKNOWN, Board, Floats, Rows
from sagellm_control_plane.observing import Subject

from .base import Router, least, tied_least

REMEMBERED = 65536
"""Sessions whose last engine is remembered."""
DISTANCES = (("island", 0.05), ("host", 0.1), ("rack", 0.4))
"""What moving a token's keys and values costs within each, beside computing it; 1 from elsewhere, 0 where they are."""


class Topology(Router):
    """Load, plus the prompt's tokens times the distance from the engine that has them.

    That is the one that computed the prompt, for a request that brings its blocks, else the one that last served the
    session. Without either it goes by load. A neighbour that is not known to be one is taken to be elsewhere.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[str, int] = OrderedDict()
        self._by_id: dict[str, int] = {}

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Compare load and distance; ties go by sequences, then by chance."""
        costs: Floats = board.load(rows).astype(np.float64)
        origin = self._origin(request)
        if origin is not None:
            costs = costs + request.prompt_tokens * distances(board, origin, rows)
        tied = tied_least(rows, costs)
        return int(tied[0]) if len(tied) == 1 else least(tied, board.sequences[tied], rng)

    def joined(self, row: int, board: Board) -> None:
        """An engine came."""
        self._by_id[board.engine_ids[row]] = row

    def gone(self, row: int) -> None:
        """All that it had is lost."""
        self._by_id = {name: other for name, other in self._by_id.items() if other != row}
        self.cache_lost(row)

    def cache_lost(self, row: int) -> None:
        """Sessions are at home there no more."""
        self._last = OrderedDict((session, other) for session, other in self._last.items() if other != row)

    def placed(self, request: Subject, row: int, now: float) -> None:
        """The session's keys and values are there now."""
        if request.session_id is None:
            return
        self._last[request.session_id] = row
        self._last.move_to_end(request.session_id)
        if len(self._last) > REMEMBERED:
            self._last.popitem(last=False)

    def _origin(self, request: Subject) -> int | None:
        if request.source is not None:
            return self._by_id.get(request.source)
        return self._last.get(request.session_id) if request.session_id is not None else None


def distances(board: Board, origin: int, rows: Rows) -> Floats:
    """How far each row is from ``origin``: 0 itself, up to 1 elsewhere, by :data:`DISTANCES`."""
    far = np.ones(len(rows))
    for name, value in reversed(DISTANCES):
        places = getattr(board, name)
        if places[origin] != UNKNOWN:
            far[places[rows] == places[origin]] = value
    far[rows == origin] = 0.0
    return far
