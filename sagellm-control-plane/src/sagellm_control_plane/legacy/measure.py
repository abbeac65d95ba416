"""Figures of the manager, out of what the plane counted and kept. What was not measured is ``None``."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import pvariance

from sagellm_control_plane.outcomes import Outcome, mean, percentile
from sagellm_control_plane.service import ControlPlaneService
from sagellm_control_plane.types import InstanceMetrics, PerformanceMetrics, RequestPriority, SchedulingMetrics
from sagellm_protocol import RequestEnding

from .book import Entry


def performance(plane: ControlPlaneService, *, monitored: bool) -> PerformanceMetrics:
    """The whole plane; counters since it began, the rest over the outcomes it kept."""
    ended, status = plane.ledger.ended, plane.status_now()
    outcomes = plane.ledger.outcomes.of() if monitored else []
    latencies = _completed_ms(outcomes)
    span = outcomes[-1].at - outcomes[0].at if len(outcomes) > 1 else 0.0
    due = [outcome for outcome in outcomes if outcome.had_deadline]
    missed = sum(outcome.missed for outcome in due)
    return PerformanceMetrics(
        total_requests=plane.ledger.accepted,
        completed_requests=ended[RequestEnding.COMPLETED],
        failed_requests=ended[RequestEnding.FAILED] + ended[RequestEnding.EXPIRED] + ended[RequestEnding.REFUSED],
        active_requests=status.in_flight - status.queued,
        queued_requests=status.queued,
        avg_latency_ms=mean(latencies),
        p50_latency_ms=percentile(latencies, 0.50),
        p95_latency_ms=percentile(latencies, 0.95),
        p99_latency_ms=percentile(latencies, 0.99),
        tokens_per_second=sum(outcome.tokens for outcome in outcomes) / span if span else None,
        requests_per_second=len(outcomes) / span if span else None,
        avg_gpu_utilization=None,
        total_gpu_memory_gb=None,
        used_gpu_memory_gb=None,
        total_cost=None,
        cost_per_token=None,
        slo_violations=missed,
        slo_compliance_rate=1 - missed / len(due) if due else None,
        metadata={"outcomes": len(outcomes), "cancelled_requests": ended[RequestEnding.CANCELLED]},
    )


def scheduling(plane: ControlPlaneService, policy_name: str, *, monitored: bool) -> SchedulingMetrics:
    """Decisions, the queue, and how evenly engines are loaded."""
    outcomes = plane.ledger.outcomes.of() if monitored else []
    dispatcher, waits = plane.dispatcher, [outcome.waited_s * 1000 for outcome in outcomes]
    loads = [member.load.sequences / member.capacity for member in plane.fleet if member.ready]
    decided, spent = dispatcher.placements, dispatcher.deciding_s
    variance = pvariance(loads) if len(loads) > 1 else None
    return SchedulingMetrics(
        policy_name=policy_name,
        scheduling_latency_us=spent / decided * 1e6 if decided else None,
        scheduling_throughput=decided / spent if spent else None,
        latency_prediction_error_avg=None,
        latency_prediction_error_p95=None,
        prediction_accuracy_rate=None,
        load_balance_variance=variance,
        load_balance_coefficient=None if variance is None else max(0.0, 1 - variance**0.5),
        slo_compliance_by_priority=_compliance(outcomes),
        queue_wait_time_p50=percentile(waits, 0.50),
        queue_wait_time_p95=percentile(waits, 0.95),
        queue_wait_time_p99=percentile(waits, 0.99),
        queue_length_avg=dispatcher.queue_seen / dispatcher.arrivals if dispatcher.arrivals else None,
        queue_length_max=dispatcher.longest_queue,
        metadata={"order": dispatcher.reason()},
    )


def instance(plane: ControlPlaneService, entry: Entry, *, monitored: bool) -> InstanceMetrics:
    """One engine."""
    shown = entry.shown()
    outcomes = plane.ledger.outcomes.of(shown.instance_id) if monitored else []
    latencies, info = _completed_ms(outcomes), entry.info()
    return InstanceMetrics(
        instance_id=shown.instance_id,
        total_requests_processed=len(outcomes),
        active_requests=shown.active_requests,
        failed_requests=sum(outcome.ending is RequestEnding.FAILED for outcome in outcomes),
        avg_latency_ms=mean(latencies),
        p50_latency_ms=percentile(latencies, 0.50),
        p95_latency_ms=percentile(latencies, 0.95),
        p99_latency_ms=percentile(latencies, 0.99),
        throughput_tokens_per_sec=shown.throughput_tokens_per_sec,
        gpu_utilization=None,
        gpu_memory_used_gb=None,
        gpu_memory_total_gb=None,
        current_load=shown.current_load,
        is_healthy=shown.is_healthy,
        last_health_check=info.last_heartbeat,
        consecutive_failures=info.consecutive_failures,
    )


def _completed_ms(outcomes: Sequence[Outcome]) -> list[float]:
    return [outcome.latency_s * 1000 for outcome in outcomes if outcome.ending is RequestEnding.COMPLETED]


def _compliance(outcomes: Sequence[Outcome]) -> dict[str, float]:
    shares = {}
    for priority in RequestPriority:
        rank = priority.value - RequestPriority.NORMAL.value
        due = [outcome for outcome in outcomes if outcome.had_deadline and outcome.priority == rank]
        if due:
            shares[priority.name] = 1 - sum(outcome.missed for outcome in due) / len(due)
    return shares
