"""How fast waiting work is served: prompt tokens given to engines a second, over the time in which some waited."""

from __future__ import annotations

SPAN_S = 10.0
LEAST_S = 0.5
"""Backlogged time below which a rate says nothing."""


class ServiceRate:
    """A rate over the last span or two of backlogged time: an idle plane says nothing about how fast it could be."""

    def __init__(self) -> None:
        self.last: float | None = None
        """Of the last whole span, in tokens a second."""
        self._tokens = 0
        self._backlogged_s = 0.0
        self._since: float | None = None

    def waiting(self, now: float, count: int) -> None:
        """Note that so many wait from now on."""
        if self._since is not None:
            self._backlogged_s += now - self._since
        self._since = now if count else None
        if not count and self._backlogged_s == 0.0:
            self._tokens = 0
        if self._backlogged_s >= SPAN_S:
            self.last = self._tokens / self._backlogged_s
            self._tokens, self._backlogged_s = 0, 0.0

    def served(self, tokens: int) -> None:
        """A prompt was given to an engine."""
        self._tokens += tokens

    def tokens_per_s(self, now: float) -> float | None:
        """The rate of late; ``None`` while nothing has waited long enough to tell."""
        open_s = now - self._since if self._since is not None else 0.0
        span = self._backlogged_s + open_s
        if span >= LEAST_S and self._tokens:
            current = self._tokens / span
            return current if self.last is None else (current * span + self.last * SPAN_S) / (span + SPAN_S)
        return self.last
