"""Predictors of load by name, one a file."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sagellm_protocol import ErrorCode, SageLLMError

from .base import Predictor as Predictor
from .constant import Constant as Constant
from .fitted import Arima as Arima, Fitted as Fitted, HoltWinters as HoltWinters
from .moving_average import MovingAverage as MovingAverage
from .smoothing import ExponentialSmoothing as ExponentialSmoothing

PREDICTORS: Mapping[str, type[Predictor]] = MappingProxyType(
    {one.name: one for one in (Constant, MovingAverage, ExponentialSmoothing, HoltWinters, Arima)}
)


def predictor_named(name: str) -> Predictor:
    """A predictor with its defaults.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` listing those there are; ``UNSUPPORTED`` where one lacks what it needs.
    """
    make = PREDICTORS.get(name)
    if make is None:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"unknown predictor {name!r}; there are {', '.join(PREDICTORS)}", "predictor"
        )
    return make()
