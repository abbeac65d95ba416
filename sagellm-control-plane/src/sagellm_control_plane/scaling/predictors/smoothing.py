"""Exponential smoothing: a mean in which the newest values weigh most (Brown, 1956)."""

from __future__ import annotations

from sagellm_protocol import ErrorCode, SageLLMError

from .base import WINDOW, Predictor


class ExponentialSmoothing(Predictor):
    """A level that moves by a share of each error.

    Args:
        window: Values remembered, for whoever looks at them; the level remembers all.
        alpha: Share of an error by which the level moves; 1 is the last value.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for an ``alpha`` outside of 0 (exclusive) to 1.
    """

    name = "exponential_smoothing"

    def __init__(self, window: int = WINDOW, alpha: float = 0.3) -> None:
        super().__init__(window)
        if not 0 < alpha <= 1:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST, f"alpha must be more than 0 and at most 1 (got {alpha!r})", "alpha"
            )
        self.alpha = alpha
        self._level: float | None = None

    def observe(self, value: float) -> None:
        """The next value of the series has come."""
        super().observe(value)
        self._level = value if self._level is None else self._level + self.alpha * (value - self._level)

    def expected(self) -> float:
        """The level."""
        assert self._level is not None
        return self._level
