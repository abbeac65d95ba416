"""What was last stays."""

from __future__ import annotations

from .base import Predictor


class Constant(Predictor):
    """The last value."""

    name = "constant"

    def expected(self) -> float:
        """The last value."""
        return self.values[-1]
