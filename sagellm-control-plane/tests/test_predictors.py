"""Predictors: what each makes of a series."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from sagellm_control_plane.scaling import PREDICTORS, Predictor, predictor_named
from sagellm_control_plane.scaling.predictors import Arima, Constant, ExponentialSmoothing, HoltWinters, MovingAverage
from sagellm_protocol import ErrorCode, SageLLMError

QUICK = [Constant, MovingAverage, ExponentialSmoothing]


def after(predictor: Predictor, values: list[float]) -> float:
    for value in values:
        predictor.observe(value)
    expected = predictor.predict()
    assert expected is not None
    return expected


@pytest.mark.parametrize("name", PREDICTORS)
def test_nothing_is_foretold_of_nothing_and_evenness_stays_even(name: str) -> None:
    predictor = predictor_named(name)
    assert predictor.predict() is None
    assert after(predictor, [5.0] * 12) == pytest.approx(5.0)


def test_the_last_value_a_mean_and_a_smoothed_level() -> None:
    assert after(Constant(), [1, 2, 9]) == 9
    assert after(MovingAverage(window=2), [1, 2, 9]) == 5.5
    assert after(ExponentialSmoothing(alpha=0.5), [1, 2, 9]) == 0.5 * 9 + 0.5 * 1.5


@pytest.mark.parametrize("make", QUICK)
@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=100))
def test_a_prediction_lies_within_what_was_seen(make: type[Predictor], values: list[float]) -> None:
    assert min(values) * (1 - 1e-9) <= after(make(), values) <= max(values) * (1 + 1e-9)


@pytest.mark.parametrize("make", [HoltWinters, Arima])
def test_a_rising_load_is_foretold_to_rise(make: type[Predictor]) -> None:
    assert after(make(), [float(i) for i in range(10, 40)]) > 39


def test_a_season_is_foretold() -> None:
    values = [10 + 5 * math.sin(2 * math.pi * i / 12) for i in range(36)]
    assert after(HoltWinters(season=12), values) == pytest.approx(10, abs=0.5)
    assert after(HoltWinters(season=12), values[:-9]) == pytest.approx(15, abs=0.5)


@pytest.mark.parametrize("make", [HoltWinters, Arima])
def test_a_fitted_predictor_says_something_sane_of_anything(make: type[Predictor]) -> None:
    for values in ([0.0], [1.0, 0.0] * 8, [0.0] * 20 + [1000.0], [1e-9 * i for i in range(20)]):
        assert 0 <= after(make(), values) <= 2 * max(values)


@pytest.mark.parametrize("make", [HoltWinters, Arima])
def test_without_its_package_a_predictor_says_what_to_install(
    make: type[Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagellm_control_plane.scaling.predictors.fitted.find_spec", lambda _: None)
    with pytest.raises(SageLLMError, match=r"isagellm-control-plane\[forecast\]") as refused:
        make()
    assert refused.value.code is ErrorCode.UNSUPPORTED


def test_unknown_names_and_impossible_settings_are_refused() -> None:
    with pytest.raises(SageLLMError, match="there are constant, moving_average"):
        predictor_named("prophet")
    for make in (lambda: ExponentialSmoothing(alpha=0), lambda: Constant(window=0), lambda: HoltWinters(season=40)):
        with pytest.raises(SageLLMError):
            make()
