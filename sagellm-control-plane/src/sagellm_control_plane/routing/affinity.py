"""The same engine for the same user, so that what is cached for them is found again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from .base import E, Routed
from .least_load import LeastLoad


class Affinity:
    """Highest random weight (rendezvous) hashing by user, else by session; least load for requests that name neither.

    Nothing is remembered: a user moves only while their engine is full or gone, and every plane chooses alike.
    """

    def __init__(self) -> None:
        self._otherwise = LeastLoad()

    def choose(self, request: Routed, engines: Sequence[E], now: float, rng: random.Random) -> E:
        """Take the engine of highest weight for this user."""
        whose = request.user or request.session_id
        if whose is None:
            return self._otherwise.choose(request, engines, now, rng)
        return max(engines, key=lambda engine: hashlib.sha256(f"{whose}\0{engine.engine_id}".encode()).digest())
