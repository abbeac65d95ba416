"""Engines that hold the request's adapter first, unless they are overloaded."""

from __future__ import annotations

import random

import numpy as np

from sagellm_control_plane.board import Board, Floats, Rows
from sagellm_control_plane.observing import Subject

from .base import Router, least, tied_least

LOADING_TOKENS = 4096
"""What loading an adapter is taken to cost beside computing a prompt token; also what displacing one costs others."""
SLOTS = 8
"""Adapters that an engine is taken to hold where it does not say."""


class LoraAware(Router):
    """Load, plus the cost of loading the adapter where it is not held. Requests without one go by load.

    Held is what engines report, and what they were sent of late. An adapter gets more engines as its load grows, and
    falls back to few when it shrinks.

    Args:
        loading_tokens: Cost of loading, in prompt tokens.
        slots: Adapters remembered for an engine.
    """

    def __init__(self, loading_tokens: int = LOADING_TOKENS, slots: int = SLOTS) -> None:
        self._loading_tokens, self._slots = loading_tokens, slots
        self._sent: dict[int, dict[str, None]] = {}
        self._sent_to: dict[str, set[int]] = {}

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Compare load and loading; ties go by sequences, then by chance."""
        costs: Floats = board.load(rows).astype(np.float64)
        adapter = request.adapter
        if adapter is not None:
            held = {*board.holders(adapter), *self._sent_to.get(adapter, ())}
            costs = costs + np.where(np.isin(rows, list(held)), 0.0, float(self._loading_tokens))
        tied = tied_least(rows, costs)
        return int(tied[0]) if len(tied) == 1 else least(tied, board.sequences[tied], rng)

    def gone(self, row: int) -> None:
        """All that it had is lost."""
        self.cache_lost(row)

    def cache_lost(self, row: int) -> None:
        """It holds no adapter that it was sent."""
        for name in self._sent.pop(row, ()):
            self._displace(row, name)

    def placed(self, request: Subject, row: int, now: float) -> None:
        """It will hold the adapter."""
        if request.adapter is None:
            return
        names = self._sent.setdefault(row, {})
        names.pop(request.adapter, None)
        names[request.adapter] = None
        self._sent_to.setdefault(request.adapter, set()).add(row)
        while len(names) > self._slots:
            oldest = next(iter(names))
            del names[oldest]
            self._displace(row, oldest)

    def _displace(self, row: int, name: str) -> None:
        self._sent_to[name].discard(row)
        if not self._sent_to[name]:
            del self._sent_to[name]
