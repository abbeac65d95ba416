"""Any engine, with equal chance."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .base import E, Routed


class Draw:
    """A uniform draw."""

    def choose(self, request: Routed, engines: Sequence[E], now: float, rng: random.Random) -> E:
        """Draw one."""
        return rng.choice(engines)
