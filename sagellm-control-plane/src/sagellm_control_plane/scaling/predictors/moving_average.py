"""The mean of late: slow to follow a change, blind to a single outlier."""

from __future__ import annotations

from .base import Predictor

SHORT = 5


class MovingAverage(Predictor):
    """The mean of the values remembered.

    Args:
        window: How many.
    """

    name = "moving_average"

    def __init__(self, window: int = SHORT) -> None:
        super().__init__(window)

    def expected(self) -> float:
        """Their mean."""
        return sum(self.values) / len(self.values)
