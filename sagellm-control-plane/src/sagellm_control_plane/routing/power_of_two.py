"""The less loaded of two drawn engines: nearly as even as looking at all of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .base import E, Routed
from .least_load import load_tokens


class PowerOfTwo:
    """Two choices (Mitzenmacher 2001), compared by tokens."""

    def choose(self, request: Routed, engines: Sequence[E], now: float, rng: random.Random) -> E:
        """Draw two without repetition and take the less loaded."""
        if len(engines) == 1:
            return engines[0]
        first, second = rng.sample(engines, 2)
        return min(first, second, key=lambda engine: (load_tokens(engine), engine.sequences))
