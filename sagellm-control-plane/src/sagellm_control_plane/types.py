"""The words of the control plane that this package replaces, under their old names: plain dataclasses and enums.

For callers of ``sagellm_control_plane.manager.ControlPlaneManager``; the plane itself speaks ``sagellm_protocol``. A
figure that cannot be measured is ``None`` where a manager fills it in, whatever its default here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from sagellm_protocol import EngineState

from .legacy.figures import InstanceMetrics, PDMetrics, PerformanceMetrics, SchedulingMetrics
from .legacy.instances import DecodingConfig, ExecutionInstance, ExecutionInstanceType, PrefillingConfig, RequestType


def now() -> datetime:
    """Local time without a zone, as these types have always carried it."""
    return datetime.now()  # noqa: DTZ005 - callers compare these with their own naive times


@dataclass
class EngineInfo:
    """An engine as it was registered."""

    engine_id: str
    model_id: str
    host: str
    port: int
    state: EngineState = EngineState.STARTING
    engine_kind: str = "llm"
    created_at: datetime = field(default_factory=now)
    last_heartbeat: datetime | None = None
    consecutive_failures: int = 0
    active_requests: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def is_healthy(self) -> bool:
        """Whether it works: ready, or finishing what it has."""
        return self.state in (EngineState.READY, EngineState.DRAINING)

    @property
    def is_accepting_requests(self) -> bool:
        """Whether it takes new requests."""
        return self.state is EngineState.READY

    @property
    def is_terminal(self) -> bool:
        """Whether it is over with it."""
        return self.state in (EngineState.STOPPED, EngineState.ERROR)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON would carry them."""
        return {
            "engine_id": self.engine_id,
            "model_id": self.model_id,
            "host": self.host,
            "port": self.port,
            "state": self.state.value,
            "engine_kind": self.engine_kind,
            "created_at": self.created_at.isoformat(),
            "last_heartbeat": self.last_heartbeat.isoformat() if self.last_heartbeat is not None else None,
            "consecutive_failures": self.consecutive_failures,
            "active_requests": self.active_requests,
            "metadata": dict(self.metadata),
        }


class RequestPriority(Enum):
    """Importance; lower is sooner."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3
    BACKGROUND = 4


class RequestStatus(Enum):
    """Where a request is."""

    PENDING = "pending"
    QUEUED = "queued"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ParallelismType(Enum):
    """How a model is spread over devices."""

    TENSOR_PARALLEL = "tp"
    PIPELINE_PARALLEL = "pp"
    DATA_PARALLEL = "dp"
    EXPERT_PARALLEL = "ep"
    HYBRID = "hybrid"


@dataclass
class RequestMetadata:
    """A request and its stations."""

    request_id: str
    prompt: str | None = None
    user_id: str | None = None
    priority: RequestPriority = RequestPriority.NORMAL
    slo_deadline_ms: float | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    model_name: str | None = None
    request_type: RequestType = RequestType.LLM_CHAT
    embedding_texts: list[str] | None = None
    embedding_model: str | None = None
    embedding_batch_size: int = 32
    arrival_time: datetime = field(default_factory=now)
    queue_time: datetime | None = None
    schedule_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    preferred_instance_id: str | None = None
    parallelism_hint: ParallelismType | None = None
    cost_budget: float | None = None
    billing_tier: str = "standard"
    tokens_generated: int = 0
    last_token_time: datetime | None = None
    tbt_slo_ms: float | None = None
    prefill_completed: bool = False
    can_be_preempted: bool = True
    tags: dict[str, Any] = field(default_factory=dict)

    @property
    def latency_ms(self) -> float | None:
        """Arrival to end."""
        return None if self.end_time is None else _ms(self.arrival_time, self.end_time)

    @property
    def queue_wait_ms(self) -> float | None:
        """Queued to scheduled."""
        if self.queue_time is None or self.schedule_time is None:
            return None
        return _ms(self.queue_time, self.schedule_time)

    @property
    def is_embedding_request(self) -> bool:
        """Whether it asks for vectors."""
        return self.request_type is RequestType.EMBEDDING

    @property
    def is_llm_request(self) -> bool:
        """Whether it asks for text."""
        return self.request_type in (RequestType.LLM_CHAT, RequestType.LLM_GENERATE)

    @property
    def effective_model_name(self) -> str | None:
        """The embedding model of an embedding request that names one, else the model."""
        if self.is_embedding_request and self.embedding_model is not None:
            return self.embedding_model
        return self.model_name


@dataclass
class SchedulingDecision:
    """Which instance a request goes to, and why."""

    request_id: str
    target_instance_id: str
    parallelism_strategy: ParallelismType
    estimated_latency_ms: float | None
    estimated_cost: float | None
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    decision_time: datetime = field(default_factory=now)
    reason: str = ""
    confidence: float = 1.0
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class PDSeparationConfig:
    """Prefill and decode on instances of their own."""

    enabled: bool = True
    enable_dynamic_scaling: bool = True
    prefilling_min_instances: int = 1
    prefilling_max_instances: int = 5
    decoding_min_instances: int = 2
    decoding_max_instances: int = 8
    routing_policy: str = "adaptive"
    prefilling_threshold_input_tokens: int = 800
    prefilling_threshold_ratio: float = 4.0
    kv_cache_storage: str = "gpu"
    kv_cache_eviction_policy: str = "lru"
    kv_cache_memory_fraction: float = 0.85
    enable_kv_cache_transfer: bool = True
    kv_cache_transfer_buffer_mb: int = 2048
    max_transfer_latency_ms: float = 100.0
    collect_pd_metrics: bool = True
    pd_metrics_interval_sec: int = 10
    enable_pd_tracing: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class ScalingDecision:
    """How many instances there should be."""

    num_prefill_instances: int
    num_decode_instances: int
    predicted_load: dict[str, float]
    decision_time: datetime = field(default_factory=now)
    reason: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


def _ms(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds() * 1000


__all__ = [
    "DecodingConfig",
    "EngineInfo",
    "EngineState",
    "ExecutionInstance",
    "ExecutionInstanceType",
    "InstanceMetrics",
    "PDMetrics",
    "PDSeparationConfig",
    "ParallelismType",
    "PerformanceMetrics",
    "PrefillingConfig",
    "RequestMetadata",
    "RequestPriority",
    "RequestStatus",
    "RequestType",
    "ScalingDecision",
    "SchedulingDecision",
    "SchedulingMetrics",
]
