"""Figures over the newest records of requests, decisions and instances. What was not recorded is ``None``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import pvariance

from .legacy.errors import BadValue
from .outcomes import mean, percentile
from .types import (
    ExecutionInstance,
    InstanceMetrics,
    PerformanceMetrics,
    RequestMetadata,
    RequestPriority,
    SchedulingDecision,
    SchedulingMetrics,
    now,
)

ACCURATE = 0.2
"""Share of the actual latency by which a prediction may be off and still count as accurate."""

_UNMEASURED = (
    "avg_latency_ms",
    "p50_latency_ms",
    "p95_latency_ms",
    "p99_latency_ms",
    "throughput_tokens_per_sec",
    "gpu_utilization",
    "gpu_memory_used_gb",
    "gpu_memory_total_gb",
)


@dataclass(frozen=True)
class _Done:
    at: float
    instance_id: str
    priority: RequestPriority
    latency_ms: float
    waited_ms: float | None
    predicted_ms: float | None
    deadline_ms: float | None
    cost: float | None
    tokens: int
    success: bool

    @property
    def kept(self) -> bool:
        """Whether it met its deadline."""
        return self.success and self.deadline_ms is not None and self.latency_ms <= self.deadline_ms


class MetricsCollector:
    """Keeps records and computes figures from them.

    Args:
        window_size: Records of each kind that are kept; counters are whole.

    Raises:
        ValueError: For a window under 1.
    """

    def __init__(self, window_size: int = 1000) -> None:
        if window_size < 1:
            raise BadValue(f"window_size must be 1 or more (got {window_size!r})", "window_size")
        self.window_size = window_size
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._done: deque[_Done] = deque(maxlen=self.window_size)
        self._decided_us: deque[float] = deque(maxlen=self.window_size)
        self._lengths: deque[int] = deque(maxlen=self.window_size)
        self._longest = self._completed = self._failed = 0
        self._instances: dict[str, InstanceMetrics] = {}
        self._latencies: dict[str, deque[float]] = {}
        self._loads: dict[str, ExecutionInstance] = {}

    def record_request_completion(
        self, request: RequestMetadata, decision: SchedulingDecision, actual_latency_ms: float, success: bool = True
    ) -> None:
        """A request is over."""
        done = _Done(
            at=time.monotonic(),
            instance_id=decision.target_instance_id,
            priority=request.priority,
            latency_ms=actual_latency_ms,
            waited_ms=request.queue_wait_ms,
            predicted_ms=decision.estimated_latency_ms,
            deadline_ms=request.slo_deadline_ms,
            cost=decision.estimated_cost,
            tokens=request.tokens_generated,
            success=success,
        )
        self._done.append(done)
        self._completed += success
        self._failed += not success
        metrics = self._instance(done.instance_id)
        metrics.total_requests_processed += 1
        if success:
            metrics.consecutive_failures = 0
            self._note_latencies(metrics, [actual_latency_ms])
        else:
            self.record_instance_failure(done.instance_id)

    def record_scheduling_decision(self, decision_time_us: float) -> None:
        """A decision took that long."""
        self._decided_us.append(decision_time_us)

    def record_queue_length(self, length: int) -> None:
        """So many waited at one moment."""
        self._lengths.append(length)
        self._longest = max(self._longest, length)

    def update_instance_metrics(self, instance: ExecutionInstance, latencies: list[float] | None = None) -> None:
        """Take in an instance's figures of now, and latencies of its requests in milliseconds."""
        metrics = self._instance(instance.instance_id)
        self._loads[instance.instance_id] = instance
        metrics.timestamp = metrics.last_health_check = now()
        metrics.active_requests = instance.active_requests
        metrics.throughput_tokens_per_sec = instance.throughput_tokens_per_sec
        metrics.current_load = instance.current_load
        metrics.is_healthy = instance.is_healthy
        # Shares and sizes of no device say nothing: an instance that tells neither leaves both open.
        told = instance.gpu_memory_gb > 0
        metrics.gpu_utilization = instance.gpu_utilization if told or instance.gpu_utilization else None
        metrics.gpu_memory_total_gb = instance.gpu_memory_gb if told else None
        self._note_latencies(metrics, latencies or [])

    def record_instance_failure(self, instance_id: str) -> None:
        """An instance failed a request or a look."""
        metrics = self._instance(instance_id)
        metrics.failed_requests += 1
        metrics.consecutive_failures += 1

    def get_scheduling_metrics(self, policy_name: str) -> SchedulingMetrics:
        """Figures of decisions and the queue."""
        waits = [done.waited_ms for done in self._done if done.waited_ms is not None]
        errors = [
            abs(done.predicted_ms - done.latency_ms) / done.latency_ms
            for done in self._done
            if done.predicted_ms is not None and done.success and done.latency_ms > 0
        ]
        loads = [instance.current_load for instance in self._loads.values()]
        variance = pvariance(loads) if len(loads) > 1 else None
        spent_us = mean(list(self._decided_us))
        return SchedulingMetrics(
            policy_name=policy_name,
            scheduling_latency_us=spent_us,
            scheduling_throughput=1e6 / spent_us if spent_us else None,
            latency_prediction_error_avg=mean(errors),
            latency_prediction_error_p95=percentile(errors, 0.95),
            prediction_accuracy_rate=mean([float(error <= ACCURATE) for error in errors]),
            load_balance_variance=variance,
            load_balance_coefficient=None if variance is None else max(0.0, 1 - variance**0.5),
            slo_compliance_by_priority=self._compliance(),
            queue_wait_time_p50=percentile(waits, 0.50),
            queue_wait_time_p95=percentile(waits, 0.95),
            queue_wait_time_p99=percentile(waits, 0.99),
            queue_length_avg=mean([float(length) for length in self._lengths]),
            queue_length_max=self._longest,
        )

    def get_instance_metrics(self, instance_id: str) -> InstanceMetrics | None:
        """Figures of one instance; ``None`` if nothing was recorded of it."""
        return self._instances.get(instance_id)

    def get_all_instance_metrics(self) -> dict[str, InstanceMetrics]:
        """Figures of each instance."""
        return dict(self._instances)

    def get_global_metrics(self) -> PerformanceMetrics:
        """Figures of all; counters since the last reset, the rest over the records that are kept."""
        done = list(self._done)
        latencies = [one.latency_ms for one in done if one.success]
        span = done[-1].at - done[0].at if len(done) > 1 else 0.0
        due = [one for one in done if one.deadline_ms is not None]
        costs = [one.cost for one in done if one.cost is not None]
        produced = sum(one.tokens for one in done)
        priced = sum(one.tokens for one in done if one.cost is not None)
        utilizations = [one.gpu_utilization for one in self._instances.values() if one.gpu_utilization is not None]
        memory = [one.gpu_memory_total_gb for one in self._instances.values() if one.gpu_memory_total_gb]
        missed = sum(not one.kept for one in due)
        return PerformanceMetrics(
            total_requests=self._completed + self._failed,
            completed_requests=self._completed,
            failed_requests=self._failed,
            active_requests=sum(instance.active_requests for instance in self._loads.values()),
            queued_requests=self._lengths[-1] if self._lengths else 0,
            avg_latency_ms=mean(latencies),
            p50_latency_ms=percentile(latencies, 0.50),
            p95_latency_ms=percentile(latencies, 0.95),
            p99_latency_ms=percentile(latencies, 0.99),
            tokens_per_second=produced / span if span else None,
            requests_per_second=len(done) / span if span else None,
            avg_gpu_utilization=mean(utilizations),
            total_gpu_memory_gb=sum(memory) if memory else None,
            used_gpu_memory_gb=None,
            total_cost=sum(costs) if costs else None,
            cost_per_token=sum(costs) / priced if priced else None,
            slo_violations=missed,
            slo_compliance_rate=1 - missed / len(due) if due else None,
        )

    def _instance(self, instance_id: str) -> InstanceMetrics:
        if instance_id not in self._instances:
            metrics = self._instances[instance_id] = InstanceMetrics(instance_id)
            for name in _UNMEASURED:
                setattr(metrics, name, None)
        return self._instances[instance_id]

    def _note_latencies(self, metrics: InstanceMetrics, latencies: Sequence[float]) -> None:
        kept = self._latencies.setdefault(metrics.instance_id, deque(maxlen=self.window_size))
        kept.extend(latencies)
        metrics.avg_latency_ms = mean(list(kept))
        metrics.p50_latency_ms = percentile(kept, 0.50)
        metrics.p95_latency_ms = percentile(kept, 0.95)
        metrics.p99_latency_ms = percentile(kept, 0.99)

    def _compliance(self) -> dict[str, float]:
        shares = {}
        for priority in RequestPriority:
            due = [done.kept for done in self._done if done.deadline_ms is not None and done.priority is priority]
            if due:
                shares[priority.name] = sum(due) / len(due)
        return shares
