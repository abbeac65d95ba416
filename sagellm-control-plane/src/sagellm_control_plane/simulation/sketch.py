"""Percentiles of any number of values in bounded memory."""

from __future__ import annotations

import math


class Sketch:
    """A histogram whose bins grow in proportion (DDSketch, Masson et al. 2019): quantiles to within ``error``.

    Args:
        error: Relative error of a quantile.
    """

    def __init__(self, error: float = 0.005) -> None:
        self._gamma = (1 + error) / (1 - error)
        self._log = math.log(self._gamma)
        self._bins: dict[int, int] = {}
        self._zeros = 0
        self.count = 0
        self.total = 0.0
        self.largest = 0.0

    def add(self, value: float) -> None:
        """Count a value; what is not above zero counts as zero."""
        self.count += 1
        if value <= 1e-9:
            self._zeros += 1
            return
        self.total += value
        self.largest = max(self.largest, value)
        at = math.ceil(math.log(value) / self._log)
        self._bins[at] = self._bins.get(at, 0) + 1

    @property
    def mean(self) -> float | None:
        """Exact mean; ``None`` of nothing."""
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """The value that ``share`` of all do not exceed; ``None`` of nothing."""
        if not self.count:
            return None
        rank, seen = max(1, math.ceil(share * self.count)), self._zeros
        if seen >= rank:
            return 0.0
        for at in sorted(self._bins):
            seen += self._bins[at]
            if seen >= rank:
                return 2 * math.exp(at * self._log) / (self._gamma + 1)
        return self.largest
