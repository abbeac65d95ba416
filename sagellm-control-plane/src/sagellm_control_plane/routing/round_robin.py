"""In turn, whatever the load."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .base import E, Routed

REMEMBERED = 4096
"""Engines whose turn is remembered; those that are gone must not pile up."""


class RoundRobin:
    """The engine that was chosen longest ago.

    Remembers when each was chosen, so that one that was full or new when its turn came does not shift the others.
    """

    def __init__(self) -> None:
        self._turn = 0
        self._chosen: dict[str, int] = {}

    def choose(self, request: Routed, engines: Sequence[E], now: float, rng: random.Random) -> E:
        """Take the next one in turn."""
        chosen = min(engines, key=lambda engine: self._chosen.get(engine.engine_id, -1))
        self._turn += 1
        self._chosen[chosen.engine_id] = self._turn
        if len(self._chosen) > REMEMBERED:
            newest = sorted(self._chosen.items(), key=lambda entry: entry[1])[REMEMBERED // 2 :]
            self._chosen = dict(newest)
        return chosen
