"""Load foretold and instances decided, under SAGE's names."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import until
from sagellm_control_plane.autoscaler import Autoscaler, AutoscalerConfig
from sagellm_control_plane.load_predictor import (
    ConstantPredictor,
    ExponentialSmoothingPredictor,
    LoadPredictor,
    MovingAveragePredictor,
)
from sagellm_control_plane.metrics_collector import SystemMetrics
from sagellm_control_plane.types import ScalingDecision


def test_predictors_foretell_each_figure() -> None:
    for predictor, expected in (
        (ConstantPredictor(), (30.0, 300.0, 30.0)),
        (MovingAveragePredictor(2), (25.0, 250.0, 25.0)),
        (ExponentialSmoothingPredictor(alpha=0.5), (22.5, 225.0, 22.5)),
    ):
        assert predictor.predict() == (None, None, None)
        assert not predictor.has_sufficient_data()
        for load in (10.0, 20.0, 30.0):
            predictor.add_data_point(load, load * 10, load)
        assert predictor.predict() == expected
    assert MovingAveragePredictor(2).get_history_size() == 0


def test_an_interval_without_requests_tells_nothing_of_lengths() -> None:
    predictor = ConstantPredictor()
    predictor.add_data_point(10, 100, 50)
    predictor.add_data_point(0, 0, 0)
    assert predictor.predict() == (0.0, 100.0, 50.0)


@pytest.mark.parametrize("name", ["arima", "prophet"])
def test_fitted_predictors_follow_a_trend(name: str) -> None:
    pytest.importorskip("statsmodels")
    predictor = LoadPredictor.create(name, 20)
    for step in range(12):
        predictor.add_data_point(10.0 + 5 * step + (0, 7, -6, 4, -3)[step % 5], 100.0, 50.0)
    requests, isl, osl = predictor.predict()
    assert requests is not None
    assert 55 < requests < 80
    assert (isl, osl) == (100.0, 50.0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'made-up'.*moving_average"):
        LoadPredictor.create("made-up")
    with pytest.raises(ValueError, match="alpha"):
        ExponentialSmoothingPredictor(alpha=0.0)
    with pytest.raises(ValueError, match="avg_isl"):
        ConstantPredictor().add_data_point(1.0, float("nan"), 1.0)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"min_prefill_instances": 11}, "max_prefill_instances=10 contradict"),
        ({"target_ttft_ms": 0.0}, "target_ttft_ms"),
        ({"max_gpu_budget": 4}, "max_gpu_budget is 4"),
        ({"load_predictor_type": "made-up"}, "made-up"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(bad: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        scaler(**bad)


class Figures:
    def __init__(self, *intervals: SystemMetrics) -> None:
        self.intervals = list(intervals)

    async def collect_metrics(self, interval_sec: int = 60) -> SystemMetrics:
        if not self.intervals:
            raise ConnectionError("no figures")
        return self.intervals.pop(0) if len(self.intervals) > 1 else self.intervals[0]


def interval(num_requests: float = 600.0, **fields: Any) -> SystemMetrics:
    figures = {"avg_isl": 1000.0, "avg_osl": 200.0, "num_prefill_instances": 1, "num_decode_instances": 1}
    return SystemMetrics(num_requests, **{**figures, **fields})


def scaler(*intervals: SystemMetrics, callback: Any = print, **config: Any) -> Autoscaler:
    return Autoscaler(AutoscalerConfig(**config), Figures(*intervals), callback)


def test_nothing_is_changed_while_it_is_not_known_what_an_instance_can_do() -> None:
    decision = scaler().decide(interval(num_decode_instances=3))
    assert (decision.num_prefill_instances, decision.num_decode_instances) == (1, 3)
    assert "no time to the first token was measured yet" in decision.reason


def test_instances_follow_from_the_load_and_what_was_measured() -> None:
    autoscaler = scaler(enable_correction=False)
    # 10 requests a second of 0.1 s each fill 1 s of prompts a second: 2 instances half busy keep 200 ms.
    decision = autoscaler.decide(interval(avg_ttft_ms=100.0, avg_itl_ms=60.0))
    # 80 answers at once came 60 ms apart, so 66 come within 50 ms: 1,320 tokens a second,
    # four fifths of them to be used.
    assert (decision.num_prefill_instances, decision.num_decode_instances) == (2, 2)
    assert decision.predicted_load == {"num_requests": 600.0, "avg_isl": 1000.0, "avg_osl": 200.0}
    assert "10.00 requests/s of 1000+200 tokens need 2.00 instances for prompts" in decision.reason
    double = scaler(enable_correction=False).decide(interval(1200.0, avg_ttft_ms=100.0, avg_itl_ms=60.0))
    assert double.num_prefill_instances == 4


def test_worse_figures_than_expected_ask_for_more() -> None:
    autoscaler = scaler(enable_online_learning=True)
    autoscaler.decide(interval(avg_ttft_ms=50.0, avg_itl_ms=10.0))
    decision = autoscaler.decide(interval(avg_ttft_ms=100.0, avg_itl_ms=10.0))
    assert decision.metadata["corrections"]["prefill"] == pytest.approx(2.0)


def test_limits_and_the_budget_bound_what_is_wanted() -> None:
    loaded = interval(6000.0, avg_ttft_ms=100.0, avg_itl_ms=60.0, num_decode_instances=8)
    decision = scaler(max_gpu_budget=16, max_decode_instances=8).decide(loaded)
    assert 4 * decision.num_prefill_instances + decision.num_decode_instances <= 16
    assert "max_gpu_budget=16" in decision.reason
    assert decision.num_decode_instances > 1


def test_an_instance_goes_only_when_two_intervals_agree() -> None:
    autoscaler = scaler()
    idle = interval(0.0, avg_isl=0.0, avg_osl=0.0, num_prefill_instances=3, num_decode_instances=3)
    autoscaler.decide(interval(6000.0, avg_ttft_ms=100.0, avg_itl_ms=60.0))
    first, second = autoscaler.decide(idle), autoscaler.decide(idle)
    assert first.num_prefill_instances == 3
    assert "once another interval agrees" in first.reason
    assert (second.num_prefill_instances, second.num_decode_instances) == (1, 1)


async def test_a_running_autoscaler_tells_of_changes_and_outlives_an_interval_without_figures() -> None:
    told: list[ScalingDecision] = []

    async def apply(decision: ScalingDecision) -> None:
        told.append(decision)

    loaded = interval(avg_ttft_ms=100.0, avg_itl_ms=60.0)
    autoscaler = scaler(loaded, callback=apply, adjustment_interval_sec=60)
    await autoscaler.start()
    await until(lambda: told)
    status = autoscaler.get_status()
    assert (status["running"], status["applied"]) == (True, 1)
    assert status["last_decision"]["num_prefill_instances"] == told[0].num_prefill_instances
    await autoscaler.stop()
    assert not autoscaler.get_status()["running"]
    blind = scaler()
    await blind.start()
    await until(lambda: blind.get_status()["last_error"])
    assert blind.get_status()["running"]
    await blind.stop()


async def test_no_operation_decides_and_leaves_it_at_that() -> None:
    told: list[ScalingDecision] = []
    loaded = interval(avg_ttft_ms=100.0, avg_itl_ms=60.0)
    autoscaler = scaler(loaded, callback=told.append, no_operation=True)
    assert (await autoscaler.adjust()).num_prefill_instances == 2
    assert told == []
