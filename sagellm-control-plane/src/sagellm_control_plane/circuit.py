"""A circuit breaker: whether requests are sent to an engine, by how those that were sent fared.

Closed, it counts; after too many failures it opens and lets nothing through for a while, then half-opens and lets one
request through, whose fate closes it or opens it for twice as long (M. Nygard, "Release It!"). Pure: it is told the
time, and knows neither engines nor requests.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

LONGEST = 8
"""Times the first span that it stays open at most."""


class CircuitState(str, Enum):
    """Whether requests go through."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True)
class Tolerance:
    """How much failure is too much."""

    failures: int = 5
    """In a row,"""
    error_rate: float = 0.5
    """or this share of the newest ``window``, of which half must be known."""
    window: int = 20
    open_s: float = 5.0
    """Time for which nothing is sent; doubles with each probe that fails."""


class Circuit:
    """The breaker of one engine.

    Args:
        tolerance: When it opens, and for how long.
    """

    def __init__(self, tolerance: Tolerance) -> None:
        self._tolerance = tolerance
        self._newest: deque[bool] = deque(maxlen=tolerance.window)
        self._in_a_row = 0
        self._openings = 0
        self.state = CircuitState.CLOSED
        self.probe: int | None = None
        """Number of the request that tries a half-open circuit."""

    @property
    def admits(self) -> bool:
        """Whether a request may go through now."""
        return self.state is CircuitState.CLOSED or (self.state is CircuitState.HALF_OPEN and self.probe is None)

    @property
    def open_s(self) -> float:
        """How long it stays open this time."""
        return self._tolerance.open_s * min(LONGEST, 2.0 ** max(0, self._openings - 1))

    def sent(self, number: int) -> None:
        """A request goes through."""
        if self.state is CircuitState.HALF_OPEN:
            self.probe = number

    def left(self, number: int) -> None:
        """A request ended or moved elsewhere; a probe that proved nothing makes room for another."""
        if self.probe == number:
            self.probe = None

    def began(self, number: int) -> None:
        """A request was given output; that is what a probe is to show."""
        if self.probe == number:
            self.reset()

    def succeeded(self) -> None:
        """A request was completed."""
        self._in_a_row = 0
        self._newest.append(True)

    def failed(self, number: int) -> bool:
        """The engine failed a request; whether that is too much."""
        if self.state is not CircuitState.CLOSED:
            # What was sent before it opened says nothing new.
            return self.probe == number
        self._in_a_row += 1
        self._newest.append(False)
        known, limit = len(self._newest), self._tolerance
        often = known >= max(1, limit.window // 2) and self._newest.count(False) / known >= limit.error_rate
        return often or self._in_a_row >= limit.failures

    def open(self) -> None:
        """Let nothing through."""
        self._openings += 1
        self.state, self.probe = CircuitState.OPEN, None

    def half_open(self) -> None:
        """Let one through."""
        self.state, self.probe = CircuitState.HALF_OPEN, None

    def reset(self) -> None:
        """Close it, and forget."""
        self.state, self.probe = CircuitState.CLOSED, None
        self._in_a_row = self._openings = 0
        self._newest.clear()
