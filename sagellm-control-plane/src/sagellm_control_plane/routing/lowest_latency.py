"""Where the first token has come soonest of late."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .base import E, Routed
from .least_load import LeastLoad


class LowestLatency:
    """Lowest measured time to the first token; an engine not yet measured comes first. Ties go by load."""

    def __init__(self) -> None:
        self._between = LeastLoad()

    def choose(self, request: Routed, engines: Sequence[E], now: float, rng: random.Random) -> E:
        """Compare measured latencies; ties go by load."""
        lowest = min(engine.latency_s or 0.0 for engine in engines)
        tied = [engine for engine in engines if (engine.latency_s or 0.0) == lowest]
        return self._between.choose(request, tied, now, rng)
