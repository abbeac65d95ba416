"""Where a token costs the least: devices occupied over tokens a second."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .base import E, EngineView, Routed
from .least_load import LeastLoad


def device_seconds_per_token(engine: EngineView) -> float | None:
    """Price of a token in device-seconds; absent while throughput is unmeasured. Any price an hour scales all alike."""
    return engine.devices / engine.throughput_tps if engine.throughput_tps else None


class Cheapest:
    """Lowest price a token; while one is unmeasured, the least loaded of those that occupy the fewest devices."""

    def __init__(self) -> None:
        self._between = LeastLoad()

    def choose(self, request: Routed, engines: Sequence[E], now: float, rng: random.Random) -> E:
        """Compare prices; ties go by load."""
        prices = [device_seconds_per_token(engine) for engine in engines]
        known = [price for price in prices if price is not None]
        if len(known) < len(engines):
            fewest = min(engine.devices for engine in engines)
            tied = [engine for engine in engines if engine.devices == fewest]
        else:
            lowest = min(known)
            tied = [engine for engine, price in zip(engines, known, strict=True) if price == lowest]
        return self._between.choose(request, tied, now, rng)
