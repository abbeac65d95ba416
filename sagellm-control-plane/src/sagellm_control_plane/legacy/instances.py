"""An instance that requests may go to, as callers of the replaced control plane describe it: plain values.

Re-exported by :mod:`sagellm_control_plane.types`, where callers look for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class RequestType(Enum):
    """What is asked for."""

    LLM_CHAT = "llm_chat"
    LLM_GENERATE = "llm_generate"
    EMBEDDING = "embedding"


class ExecutionInstanceType(Enum):
    """What an instance is for."""

    GENERAL = "general"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    HYBRID = "hybrid"
    EMBEDDING = "embedding"
    LLM_EMBEDDING = "llm_embedding"


@dataclass
class PrefillingConfig:
    """Settings of an instance that computes prompts."""

    target_batch_size: int = 64
    target_throughput_tokens_per_sec: float = 1000.0
    tensor_parallel_size: int = 4
    pipeline_parallel_size: int = 1
    enable_kv_cache: bool = True
    enable_chunked_prefill: bool = True
    max_chunk_size_tokens: int = 4096
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class DecodingConfig:
    """Settings of an instance that produces tokens."""

    target_latency_ms: float = 50.0
    target_tokens_per_sec_per_gpu: float = 100.0
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enable_prefix_caching: bool = True
    max_parallel_requests: int = 200
    kv_cache_memory_fraction: float = 0.85
    metadata: dict[str, Any] = field(default_factory=dict)


_LLM = (RequestType.LLM_CHAT, RequestType.LLM_GENERATE)
_TEXT_ONLY = (
    ExecutionInstanceType.GENERAL,
    ExecutionInstanceType.PREFILLING,
    ExecutionInstanceType.DECODING,
    ExecutionInstanceType.HYBRID,
)


@dataclass
class ExecutionInstance:
    """Where requests may go, what it can take, and where it stands."""

    instance_id: str
    host: str
    port: int
    model_name: str
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    instance_type: ExecutionInstanceType = ExecutionInstanceType.GENERAL
    prefilling_config: PrefillingConfig | None = None
    decoding_config: DecodingConfig | None = None
    gpu_count: int = 1
    gpu_memory_gb: float = 0.0
    gpu_utilization: float | None = 0.0
    is_available: bool = True
    is_healthy: bool = True
    current_load: float = 0.0
    avg_latency_ms: float | None = 0.0
    throughput_tokens_per_sec: float | None = 0.0
    active_requests: int = 0
    max_concurrent_requests: int = 100
    prefilling_active_requests: int = 0
    decoding_active_requests: int = 0
    supported_request_types: list[RequestType] | None = None
    embedding_model_loaded: str | None = None
    embedding_max_batch_size: int = 32
    embedding_active_requests: int = 0
    machine_id: str | None = None
    rack_id: str | None = None
    gpu_bus_id: str | None = None
    gpu_device_id: int | None = None
    nvlink_peers: list[str] = field(default_factory=list)
    numa_node: int | None = None
    network_bandwidth_gbps: float = 10.0
    network_latency_ms: float = 0.1
    shared_memory_pool: bool = False
    shared_storage_path: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def available_capacity(self) -> float:
        """Free share, 0 to 1."""
        return max(0.0, 1.0 - self.current_load)

    @property
    def can_accept_request(self) -> bool:
        """Whether it takes one more."""
        return self.is_available and self.is_healthy and self.active_requests < self.max_concurrent_requests

    def can_accept_prefilling_request(self) -> bool:
        """Whether it computes prompts and takes one more."""
        if self.instance_type in (ExecutionInstanceType.DECODING, ExecutionInstanceType.EMBEDDING):
            return False
        limit = self.prefilling_config.target_batch_size if self.prefilling_config is not None else None
        return self.can_accept_request and (limit is None or self.prefilling_active_requests < limit)

    def can_accept_decoding_request(self) -> bool:
        """Whether it produces tokens and takes one more."""
        if self.instance_type in (ExecutionInstanceType.PREFILLING, ExecutionInstanceType.EMBEDDING):
            return False
        limit = self.decoding_config.max_parallel_requests if self.decoding_config is not None else None
        return self.can_accept_request and (limit is None or self.decoding_active_requests < limit)

    def get_effective_supported_request_types(self) -> list[RequestType]:
        """What it was said to support, else what its type says."""
        if self.supported_request_types is not None:
            return list(self.supported_request_types)
        if self.instance_type in _TEXT_ONLY:
            return list(_LLM)
        if self.instance_type is ExecutionInstanceType.EMBEDDING:
            return [RequestType.EMBEDDING]
        return [*_LLM, RequestType.EMBEDDING]

    def can_handle_request_type(self, request_type: RequestType) -> bool:
        """Whether it supports that kind of request."""
        return request_type in self.get_effective_supported_request_types()

    def can_accept_embedding_request(self) -> bool:
        """Whether it makes vectors and takes one more."""
        return self.can_accept_request and self.can_handle_request_type(RequestType.EMBEDDING)

    def can_accept_llm_request(self) -> bool:
        """Whether it makes text and takes one more."""
        return self.can_accept_request and any(self.can_handle_request_type(kind) for kind in _LLM)

    def get_affinity_score(self, other: ExecutionInstance) -> float:
        """How near another is: 1 itself or over NVLink, 0.8 same NUMA node, 0.6 same machine, 0.3 same rack, or 0."""
        if other.instance_id == self.instance_id or other.instance_id in self.nvlink_peers:
            return 1.0
        if self.is_local_to(other):
            return 0.8 if self.numa_node is not None and self.numa_node == other.numa_node else 0.6
        return 0.3 if self.rack_id is not None and self.rack_id == other.rack_id else 0.0

    def is_local_to(self, other: ExecutionInstance) -> bool:
        """Whether both are known to be on one machine."""
        return self.machine_id is not None and self.machine_id == other.machine_id
