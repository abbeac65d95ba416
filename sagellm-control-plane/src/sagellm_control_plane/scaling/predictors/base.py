"""What foretells the next value of a series from those before it. Knows nothing of what the values are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

from sagellm_protocol import ErrorCode, SageLLMError

WINDOW = 60
"""Values that are remembered unless told otherwise."""


class Predictor(ABC):
    """A series of equally spaced values, none negative, and the one that is expected next.

    Args:
        window: Values remembered; older ones are forgotten.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a window under 1.
    """

    name: str

    def __init__(self, window: int = WINDOW) -> None:
        if window < 1:
            raise SageLLMError(ErrorCode.INVALID_REQUEST, f"window must be 1 or more (got {window!r})", "window")
        self.values: deque[float] = deque(maxlen=window)
        """Those remembered, oldest first."""

    def observe(self, value: float) -> None:
        """The next value of the series has come."""
        self.values.append(value)

    def predict(self) -> float | None:
        """The value expected next, never negative; ``None`` before the first was observed."""
        return max(0.0, self.expected()) if self.values else None

    @abstractmethod
    def expected(self) -> float:
        """The value expected next, where at least one was observed."""
