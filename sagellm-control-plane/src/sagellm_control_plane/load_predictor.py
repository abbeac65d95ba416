"""The load of the next interval, foretold from those before it: requests, and the lengths of their two parts.

Each is a series of its own under a predictor of :mod:`sagellm_control_plane.scaling.predictors`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType

from .legacy.errors import BadValue
from .scaling.predictors import Arima, Constant, ExponentialSmoothing, HoltWinters, MovingAverage, Predictor

Prediction = tuple[float | None, float | None, float | None]
"""Requests, mean prompt tokens and mean output tokens; ``None`` before the first was seen."""


class BaseLoadPredictor(ABC):
    """Foretells load.

    Args:
        window_size: Intervals remembered.

    Raises:
        ValueError: For a window under 1.
    """

    def __init__(self, window_size: int = 10) -> None:
        if window_size < 1:
            raise BadValue(f"window_size must be 1 or more (got {window_size!r})", "window_size")
        self.window_size = window_size
        self._requests, self._isl, self._osl = self._series(), self._series(), self._series()

    @abstractmethod
    def predict(self) -> Prediction:
        """The load of the next interval."""

    def _series(self) -> Predictor:
        """The predictor of one of the figures; :meth:`_foretold` asks them."""
        return Constant(self.window_size)

    def add_data_point(self, num_requests: float, avg_isl: float, avg_osl: float) -> None:
        """An interval has passed. One without requests tells nothing of lengths.

        Raises:
            ValueError: For a figure that is negative or no number.
        """
        for name, value in (("num_requests", num_requests), ("avg_isl", avg_isl), ("avg_osl", avg_osl)):
            if not (math.isfinite(value) and value >= 0):
                raise BadValue(f"{name} must be 0 or more (got {value!r})", name)
        self._requests.observe(num_requests)
        if num_requests > 0:
            self._isl.observe(avg_isl)
            self._osl.observe(avg_osl)

    def has_sufficient_data(self, min_points: int = 1) -> bool:
        """Whether so many intervals are remembered."""
        return self.get_history_size() >= min_points

    def get_history_size(self) -> int:
        """Intervals remembered."""
        return len(self._requests.values)

    def _foretold(self) -> Prediction:
        return self._requests.predict(), self._isl.predict(), self._osl.predict()


class ConstantPredictor(BaseLoadPredictor):
    """What was last stays."""

    def predict(self) -> Prediction:
        """The last interval."""
        return self._foretold()


class MovingAveragePredictor(BaseLoadPredictor):
    """The mean of the intervals remembered."""

    def _series(self) -> Predictor:
        return MovingAverage(self.window_size)

    def predict(self) -> Prediction:
        """Their mean."""
        return self._foretold()


class ExponentialSmoothingPredictor(BaseLoadPredictor):
    """A mean in which the newest intervals weigh most.

    Args:
        window_size: Intervals remembered.
        alpha: Weight of the newest.

    Raises:
        ValueError: For an ``alpha`` outside of 0 (exclusive) to 1.
    """

    def __init__(self, window_size: int = 10, alpha: float = 0.3) -> None:
        if not 0 < alpha <= 1:
            raise BadValue(f"alpha must be more than 0 and at most 1 (got {alpha!r})", "alpha")
        self.alpha = alpha
        super().__init__(window_size)

    def _series(self) -> Predictor:
        return ExponentialSmoothing(self.window_size, self.alpha)

    def predict(self) -> Prediction:
        """The level of each."""
        return self._foretold()


class ARIMAPredictor(BaseLoadPredictor):
    """An autoregressive moving average, fitted by statsmodels.

    Raises:
        SageLLMError: ``UNSUPPORTED`` where statsmodels is not installed, saying what to install.
    """

    def __init__(self, window_size: int = 10) -> None:
        super().__init__(window_size)

    def _series(self) -> Predictor:
        return Arima(self.window_size)

    def predict(self) -> Prediction:
        """As fitted; the mean of the last few until there are enough. Takes a while: not for an event loop."""
        return self._foretold()


class ProphetPredictor(BaseLoadPredictor):
    """Level and trend that change with time, fitted by Holt and Winters' smoothing of statsmodels.

    The package this is named after is not used: it fits days and weeks of history, of which a window holds none.

    Raises:
        SageLLMError: ``UNSUPPORTED`` where statsmodels is not installed, saying what to install.
    """

    def __init__(self, window_size: int = 10) -> None:
        super().__init__(window_size)

    def _series(self) -> Predictor:
        return HoltWinters(self.window_size)

    def predict(self) -> Prediction:
        """As fitted; the mean of the last few until there are enough. Takes a while: not for an event loop."""
        return self._foretold()


class LoadPredictor:
    """Predictors by name."""

    TYPES: Mapping[str, Callable[[int], BaseLoadPredictor]] = MappingProxyType(
        {
            "constant": ConstantPredictor,
            "moving_average": MovingAveragePredictor,
            "exponential_smoothing": ExponentialSmoothingPredictor,
            "arima": ARIMAPredictor,
            "prophet": ProphetPredictor,
        }
    )

    @staticmethod
    def create(predictor_type: str = "constant", window_size: int = 10) -> BaseLoadPredictor:
        """The predictor of that name.

        Raises:
            ValueError: For an unknown name, listing those there are.
        """
        make = LoadPredictor.TYPES.get(predictor_type)
        if make is None:
            known = ", ".join(LoadPredictor.TYPES)
            raise BadValue(f"unknown load predictor {predictor_type!r}; there are {known}", "load_predictor_type")
        return make(window_size)
