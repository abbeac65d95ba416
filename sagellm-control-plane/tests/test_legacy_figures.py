"""Figures under SAGE's names: recorded, asked of Prometheus, or fitted; never made up."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from legacy_subjects import place, wanted
from sagellm_control_plane.metrics_collector import MetricsCollector as IntervalCollector
from sagellm_control_plane.monitoring import MetricsCollector
from sagellm_control_plane.performance_interpolator import DecodeInterpolator, PrefillInterpolator
from sagellm_control_plane.types import ParallelismType, RequestMetadata, RequestPriority, SchedulingDecision
from sagellm_control_plane.utils.prometheus_client import PrometheusClient
from sagellm_protocol import ErrorCode, SageLLMError
from serving import LocalServer


def done(collector: MetricsCollector, took_ms: float, success: bool = True, **fields: Any) -> RequestMetadata:
    expected = fields.pop("expected_ms", None)
    cost = fields.pop("cost", None)
    request = wanted(**fields)
    decided = SchedulingDecision(request.request_id, "a", ParallelismType.TENSOR_PARALLEL, expected, cost)
    collector.record_request_completion(request, decided, took_ms, success)
    return request


def test_figures_of_all_come_from_what_was_recorded() -> None:
    collector = MetricsCollector(window_size=100)
    for took in (10.0, 20.0, 30.0, 40.0):
        done(collector, took, slo_deadline_ms=35.0, cost=0.5, tokens_generated=10)
    done(collector, 5.0, success=False)
    figures = collector.get_global_metrics()
    assert (figures.total_requests, figures.completed_requests, figures.failed_requests) == (5, 4, 1)
    assert (figures.avg_latency_ms, figures.p50_latency_ms, figures.p99_latency_ms) == (25.0, 20.0, 40.0)
    assert (figures.slo_violations, figures.slo_compliance_rate) == (1, 0.75)
    assert (figures.total_cost, figures.cost_per_token) == (2.0, 0.05)
    assert figures.avg_gpu_utilization is figures.used_gpu_memory_gb is None


def test_what_was_not_recorded_is_none() -> None:
    figures = MetricsCollector().get_global_metrics()
    assert figures.avg_latency_ms is figures.slo_compliance_rate is figures.total_cost is None
    scheduling = MetricsCollector().get_scheduling_metrics("fifo")
    assert (
        scheduling.scheduling_latency_us is scheduling.queue_wait_time_p50 is scheduling.load_balance_variance is None
    )
    assert MetricsCollector().get_instance_metrics("a") is None


def test_figures_of_scheduling_compare_what_was_predicted_with_what_came() -> None:
    collector = MetricsCollector()
    for expected in (100.0, 110.0, 150.0):
        done(collector, 100.0, expected_ms=expected, priority=RequestPriority.HIGH, slo_deadline_ms=200.0)
    request = wanted()
    request.queue_time = request.arrival_time
    request.schedule_time = request.arrival_time + timedelta(milliseconds=40)
    decided = SchedulingDecision(request.request_id, "a", ParallelismType.TENSOR_PARALLEL, None, None)
    collector.record_request_completion(request, decided, 10.0)
    collector.record_scheduling_decision(20.0)
    collector.record_scheduling_decision(30.0)
    for length in (1, 5, 3):
        collector.record_queue_length(length)
    for name, load in (("a", 0.2), ("b", 0.4)):
        collector.update_instance_metrics(place(name, current_load=load))
    figures = collector.get_scheduling_metrics("priority")
    assert figures.latency_prediction_error_avg == pytest.approx(0.2)
    assert figures.latency_prediction_error_p95 == pytest.approx(0.5)
    assert figures.prediction_accuracy_rate == pytest.approx(2 / 3)
    assert (figures.scheduling_latency_us, figures.scheduling_throughput) == (25.0, 40_000.0)
    assert (figures.queue_wait_time_p50, figures.queue_length_avg, figures.queue_length_max) == (40.0, 3.0, 5)
    assert figures.slo_compliance_by_priority == {"HIGH": 1.0}
    assert figures.load_balance_variance == pytest.approx(0.01)


def test_an_instances_failures_in_a_row_end_with_a_success() -> None:
    collector = MetricsCollector()
    done(collector, 1.0, success=False)
    collector.record_instance_failure("a")
    figures = collector.get_all_instance_metrics()["a"]
    assert (figures.failed_requests, figures.consecutive_failures, figures.avg_latency_ms) == (2, 2, None)
    done(collector, 8.0)
    collector.update_instance_metrics(place("a", gpu_memory_gb=80.0, gpu_utilization=0.5), [4.0])
    assert (figures.consecutive_failures, figures.avg_latency_ms, figures.total_requests_processed) == (0, 6.0, 2)
    assert (figures.gpu_utilization, figures.gpu_memory_total_gb) == (0.5, 80.0)
    collector.reset()
    assert collector.get_all_instance_metrics() == {}


# --- prometheus ---------------------------------------------------------------------------------------------------


class Prometheus:
    """Answers a query with the value of the first of its names that occurs in it."""

    def __init__(self, **values: str) -> None:
        self.values, self.queries = values, list[str]()
        self.server = LocalServer(Starlette(routes=[Route("/api/v1/query", self._query)]))

    async def __aenter__(self) -> Prometheus:
        await self.server.start()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.server.stop()

    async def _query(self, request: Request) -> JSONResponse:
        query = request.query_params["query"]
        self.queries.append(query)
        if "bad" in query:
            return JSONResponse({"status": "error", "error": "parse error"}, 400)
        found = [[0, value] for name, value in self.values.items() if name in query][:1]
        result = [{"metric": {}, "value": value} for value in found]
        return JSONResponse({"status": "success", "data": {"resultType": "vector", "result": result}})


async def test_an_interval_is_asked_of_prometheus() -> None:
    async with Prometheus(
        time_to_first_token="0.25", inter_token="NaN", prompt_tokens="400", generation_tokens="50", e2e="12"
    ) as prometheus:
        collector = IntervalCollector(prometheus.server.url, "ns", 'a "model"')
        metrics = await collector.collect_metrics(30)
        await collector.close()
    assert (metrics.avg_ttft_ms, metrics.avg_itl_ms) == (250.0, None)
    assert (metrics.num_requests, metrics.avg_isl, metrics.avg_osl) == (12.0, 400.0, 50.0)
    assert metrics.prefill_throughput_tokens_per_sec == 160.0
    assert metrics.is_valid()
    selector = '{__name__="sagellm:time_to_first_token_seconds_sum",namespace="ns",model_name="a \\"model\\""}[30s]'
    assert any(selector in query for query in prometheus.queries)


async def test_what_prometheus_refuses_or_does_not_know_is_told() -> None:
    async with Prometheus() as prometheus:
        client = PrometheusClient(prometheus.server.url)
        assert await client.get_avg_request_duration("5m") is None
        with pytest.raises(SageLLMError, match="parse error"):
            await client.query("bad")
        with pytest.raises(ValueError, match="soon"):
            await client.get_avg_request_count("soon")
    with pytest.raises(SageLLMError) as failure:
        await client.query("up")
    assert failure.value.code is ErrorCode.UNAVAILABLE
    await client.close()


# --- interpolators ------------------------------------------------------------------------------------------------


def test_time_to_the_first_token_is_learned_from_what_is_observed() -> None:
    prefill = PrefillInterpolator()
    with pytest.raises(SageLLMError, match="no time to the first token was measured yet"):
        prefill.interpolate_ttft(100)
    prefill.update_online_model(500, 70.0)
    assert prefill.interpolate_ttft(500) == pytest.approx(70.0)
    for isl in (100, 1000, 2000, 4000):
        prefill.update_online_model(isl, 20.0 + 0.1 * isl)
    assert prefill.interpolate_ttft(3000) == pytest.approx(320.0)
    assert prefill.interpolate_thpt_per_gpu(1800) == pytest.approx(1800 / 0.2)
    with pytest.raises(ValueError, match="ttft_ms"):
        prefill.update_online_model(100, 0.0)


def test_the_most_that_is_produced_within_a_target_follows_from_what_is_observed() -> None:
    decode = DecodeInterpolator()
    for concurrency in (1, 8, 32, 64):
        for context in (100, 1000):
            decode.update_online_model(concurrency, context, 10.0 + concurrency * (0.1 + 0.0001 * context))
    assert decode.interpolate_itl(16, 500) == pytest.approx(10.0 + 16 * 0.15)
    throughput, itl, concurrency = decode.find_best_throughput_per_gpu(25.0, 1000)
    assert (concurrency, itl) == (75.0, pytest.approx(25.0))
    assert throughput == pytest.approx(75 / 0.025)
    assert decode.find_best_throughput_per_gpu(1.0, 1000)[2] == 1.0


def test_profiles_are_read_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    points = [{"isl": isl, "ttft_ms": 5.0 + isl} for isl in (10, 20, 30)]
    (tmp_path / "prefill.json").write_text(json.dumps(points))
    assert PrefillInterpolator(str(tmp_path)).interpolate_ttft(40) == pytest.approx(45.0)
    with pytest.raises(ValueError, match=r"decode\.json is no profile"):
        DecodeInterpolator(str(tmp_path))
