"""Figures as callers of the replaced control plane read them: plain values.

Re-exported by :mod:`sagellm_control_plane.types`, where callers look for them. Those that may be ``None`` are not
measured everywhere; the defaults are those callers know.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


def _now() -> datetime:
    return datetime.now()  # noqa: DTZ005 - callers compare these with their own naive times


@dataclass
class PerformanceMetrics:
    """The whole plane."""

    timestamp: datetime = field(default_factory=_now)
    total_requests: int = 0
    completed_requests: int = 0
    failed_requests: int = 0
    active_requests: int = 0
    queued_requests: int = 0
    avg_latency_ms: float | None = 0.0
    p50_latency_ms: float | None = 0.0
    p95_latency_ms: float | None = 0.0
    p99_latency_ms: float | None = 0.0
    tokens_per_second: float | None = 0.0
    requests_per_second: float | None = 0.0
    avg_gpu_utilization: float | None = 0.0
    total_gpu_memory_gb: float | None = 0.0
    used_gpu_memory_gb: float | None = 0.0
    total_cost: float | None = 0.0
    cost_per_token: float | None = 0.0
    slo_violations: int = 0
    slo_compliance_rate: float | None = 1.0
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class SchedulingMetrics:
    """Decisions and the queue."""

    timestamp: datetime = field(default_factory=_now)
    policy_name: str = ""
    scheduling_latency_us: float | None = 0.0
    scheduling_throughput: float | None = 0.0
    latency_prediction_error_avg: float | None = 0.0
    latency_prediction_error_p95: float | None = 0.0
    prediction_accuracy_rate: float | None = 1.0
    load_balance_variance: float | None = 0.0
    load_balance_coefficient: float | None = 1.0
    slo_compliance_by_priority: dict[str, float] = field(default_factory=dict)
    queue_wait_time_p50: float | None = 0.0
    queue_wait_time_p95: float | None = 0.0
    queue_wait_time_p99: float | None = 0.0
    queue_length_avg: float | None = 0.0
    queue_length_max: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class InstanceMetrics:
    """One instance."""

    instance_id: str
    timestamp: datetime = field(default_factory=_now)
    total_requests_processed: int = 0
    active_requests: int = 0
    failed_requests: int = 0
    avg_latency_ms: float | None = 0.0
    p50_latency_ms: float | None = 0.0
    p95_latency_ms: float | None = 0.0
    p99_latency_ms: float | None = 0.0
    throughput_tokens_per_sec: float | None = 0.0
    gpu_utilization: float | None = 0.0
    gpu_memory_used_gb: float | None = 0.0
    gpu_memory_total_gb: float | None = 0.0
    current_load: float = 0.0
    is_healthy: bool = True
    last_health_check: datetime | None = None
    consecutive_failures: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class PDMetrics:
    """Prefill and decode apart."""

    timestamp: datetime = field(default_factory=_now)
    prefilling_throughput_tokens_per_sec: float | None = 0.0
    prefilling_latency_avg_ms: float | None = 0.0
    prefilling_latency_p99_ms: float | None = 0.0
    prefilling_gpu_util: float | None = 0.0
    prefilling_active_requests: int = 0
    decoding_latency_avg_ms: float | None = 0.0
    decoding_latency_p99_ms: float | None = 0.0
    decoding_gpu_util: float | None = 0.0
    decoding_active_requests: int = 0
    kv_cache_hit_rate: float | None = 0.0
    inter_cluster_transfer_latency_avg_ms: float | None = 0.0
    kv_cache_evictions_per_sec: float | None = 0.0
    prefilling_cost_per_token: float | None = 0.0
    decoding_cost_per_token: float | None = 0.0
    total_cost_optimization_percent: float | None = 0.0
    requests_routed_to_prefilling: int = 0
    requests_routed_to_decoding: int = 0
    requests_routed_to_hybrid: int = 0
    avg_routing_decision_time_us: float | None = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)
