"""Predictors fitted to the values of late: Holt and Winters' smoothing, and ARIMA. They need the extra ``forecast``.

Fitting takes up to hundreds of milliseconds, and is done when a prediction is asked for: not on an event loop.
"""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from sagellm_protocol import ErrorCode, SageLLMError

from .base import WINDOW, Predictor

log = logging.getLogger(__name__)


class Fitted(Predictor):
    """A predictor of statsmodels; the mean of the last few values until there are enough, or where the fit fails.

    Args:
        window: Values remembered and fitted to.

    Raises:
        SageLLMError: ``UNSUPPORTED`` where statsmodels is not installed.
    """

    least = 8
    """Values without which nothing is fitted."""

    def __init__(self, window: int = WINDOW) -> None:
        super().__init__(window)
        if find_spec("statsmodels") is None:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                f"predictor {self.name!r} needs statsmodels: pip install 'isagellm-control-plane[forecast]'",
                "predictor",
            )

    def expected(self) -> float:
        """As fitted."""
        values = np.array(self.values, np.float64)
        recent = float(values[-3:].mean())
        if len(values) < self.least or float(np.ptp(values)) == 0.0:
            return recent
        # It has its warnings always shown from its first import on, which must not come after they are switched off.
        import_module("statsmodels.tools.sm_exceptions")
        try:
            with warnings.catch_warnings():
                # A series too short or too even to converge is told by its forecast, which is checked below.
                warnings.simplefilter("ignore")
                value = self.fitted(values)
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:
            log.info("%s could not be fitted to %d values: %s", self.name, len(values), error)
            return recent
        # A forecast outside of anything seen is an artefact of the fit sooner than news.
        return value if np.isfinite(value) and value <= 2 * float(values.max()) else recent

    @abstractmethod
    def fitted(self, values: Any) -> float:
        """The next value after ``values``, ``[N]`` float64."""


class HoltWinters(Fitted):
    """Level, damped trend, and a season where one is given (Holt, 1957; Winters, 1960).

    Args:
        window: Values remembered.
        season: Values in one season (with a decision a minute, 60 for what returns every hour); ``None``: none. It is
            fitted once two of them were seen.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a season under 2 or of which the window does not hold two.
    """

    name = "holt_winters"

    def __init__(self, window: int = WINDOW, season: int | None = None) -> None:
        super().__init__(window)
        if season is not None and not 2 <= season <= window // 2:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"season must be 2 or more and fit twice into the window of {window} (got {season!r})",
                "season",
            )
        self.season = season

    def fitted(self, values: Any) -> float:
        """The next value."""
        from statsmodels.tsa.holtwinters import ExponentialSmoothing

        seasonal = self.season is not None and len(values) >= 2 * self.season
        model = ExponentialSmoothing(
            values,
            trend="add",
            damped_trend=True,
            seasonal="add" if seasonal else None,
            seasonal_periods=self.season if seasonal else None,
            initialization_method="estimated",
        )
        return float(model.fit().forecast(1)[0])


class Arima(Fitted):
    """An autoregressive moving average of differences (Box and Jenkins, 1970).

    Args:
        window: Values remembered.
        order: Autoregressive terms, differences, and terms of the moving average.
    """

    name = "arima"

    def __init__(self, window: int = WINDOW, order: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__(window)
        self.order = order

    def fitted(self, values: Any) -> float:
        """The next value."""
        from statsmodels.tsa.arima.model import ARIMA

        return float(ARIMA(values, order=self.order).fit().forecast(1)[0])
