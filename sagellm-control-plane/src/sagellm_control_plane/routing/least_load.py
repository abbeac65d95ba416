"""Where the least work waits and is held, counted in tokens rather than in requests."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .base import E, EngineView, Routed


def load_tokens(engine: EngineView) -> int:
    """Work of an engine in tokens: prompts still to be computed, and the cache that answers under way occupy.

    Queued prompt tokens say how long a new prompt waits, held tokens how much each decode step must read; counted alike
    they are the cost that NVIDIA Dynamo's router uses for requests without a cached prefix.
    """
    return engine.queued_tokens + engine.held_tokens + engine.foreign_tokens


class LeastLoad:
    """Fewest tokens, then fewest sequences, then chance."""

    def choose(self, request: Routed, engines: Sequence[E], now: float, rng: random.Random) -> E:
        """Compare every engine; ties are drawn."""
        least = min((load_tokens(engine), engine.sequences) for engine in engines)
        tied = [engine for engine in engines if (load_tokens(engine), engine.sequences) == least]
        return tied[0] if len(tied) == 1 else rng.choice(tied)
