"""What can be read off the manager: figures, states and listings, in the shapes that SAGE knows.

Changes nothing.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sagellm_control_plane.types import (
    ExecutionInstance,
    ExecutionInstanceType,
    InstanceMetrics,
    PerformanceMetrics,
    SchedulingMetrics,
    now,
)
from sagellm_protocol import EngineState

from . import book, measure
from .book import Book, Entry

if TYPE_CHECKING:
    import asyncio

    from sagellm_control_plane.gpu_manager import GPUResourceManager
    from sagellm_control_plane.service import ControlPlaneService


class Views:
    """The reading half of ``ControlPlaneManager``, which sets all that is declared here."""

    service: ControlPlaneService
    scheduling_policy: str
    routing_strategy: str
    enable_monitoring: bool
    enable_pd_separation: bool
    mode: str
    _book: Book
    _gpus: GPUResourceManager
    _loop: asyncio.AbstractEventLoop | None
    _started_at: float | None

    # --- figures ------------------------------------------------------------------------------------------------------

    def get_autoscaler_status(self) -> dict[str, Any]:
        """That there is no autoscaler yet."""
        return {"enabled": False, "running": False}

    def get_metrics(self) -> PerformanceMetrics:
        """Figures of the whole plane."""
        return measure.performance(self.service, monitored=self.enable_monitoring)

    def get_scheduling_metrics(self) -> SchedulingMetrics:
        """Figures of decisions and the queue."""
        return measure.scheduling(self.service, self.scheduling_policy, monitored=self.enable_monitoring)

    def get_instance_metrics_detailed(self, instance_id: str) -> InstanceMetrics | None:
        """Figures of one engine; ``None`` for an unknown one."""
        entry = self._book.here().get(instance_id)
        return measure.instance(self.service, entry, monitored=self.enable_monitoring) if entry is not None else None

    def get_all_instance_metrics(self) -> dict[str, InstanceMetrics]:
        """Figures of each engine."""
        return {
            engine_id: measure.instance(self.service, entry, monitored=self.enable_monitoring)
            for engine_id, entry in self._book.here().items()
        }

    def get_instances(self) -> list[ExecutionInstance]:
        """Engines as instances."""
        return [entry.shown() for entry in self._book.here().values()]

    def get_instance_metrics(self, instance_id: str) -> dict[str, Any] | None:
        """Figures of one engine as a mapping; ``None`` for an unknown one."""
        metrics = self.get_instance_metrics_detailed(instance_id)
        return asdict(metrics) if metrics is not None else None

    def get_status(self) -> dict[str, Any]:
        """The plane now."""
        status = self.service.status_now()
        return {
            "running": self._loop is not None,
            "ready": status.ready,
            "reason": status.reason,
            "uptime_seconds": None if self._started_at is None else time.monotonic() - self._started_at,
            "mode": self.mode,
            "scheduling_policy": self.scheduling_policy,
            "scheduling_reason": self.service.dispatcher.reason(),
            "routing_strategy": self.routing_strategy,
            "auto_scaling_enabled": False,
            "monitoring_enabled": self.enable_monitoring,
            "pd_separation_enabled": self.enable_pd_separation,
            "pd_separation_active": False,
            "registered_instances": len(self._book.here()),
            "available_instances": sum(record.info.state is EngineState.READY for record in status.engines),
            "queued_requests": status.queued,
            "active_requests": status.in_flight - status.queued,
            "accepted_requests": status.accepted,
            "ended_requests": {ending.value: count for ending, count in status.ended.items()},
            "refused_requests": status.refused_early,
        }

    # --- the cluster --------------------------------------------------------------------------------------------------

    def get_cluster_status(self) -> dict[str, Any]:
        """The plane, its engines, and the GPUs of this machine. Engines reserve none: their backends choose theirs."""
        return {
            "control_plane": self.get_status(),
            "gpu": self._gpus.get_system_status(),
            "engines": [told(entry) for entry in self._book.all()],
            "managed_instances": [book.summary(instance) for instance in self.get_instances()],
            "resource_reservations": self._gpus.reservations(),
        }

    def get_registered_backends(self) -> dict[str, Any]:
        """Engines by what they are for."""
        instances = self.get_instances()
        llm = [book.backend(each) for each in instances if each.instance_type is not ExecutionInstanceType.EMBEDDING]
        both = (ExecutionInstanceType.EMBEDDING, ExecutionInstanceType.LLM_EMBEDDING)
        embedding = [book.backend(each) for each in instances if each.instance_type in both]
        return {
            "llm_backends": llm,
            "embedding_backends": embedding,
            "total_llm_backends": len(llm),
            "total_embedding_backends": len(embedding),
            "healthy_llm_backends": sum(each["is_healthy"] for each in llm),
            "healthy_embedding_backends": sum(each["is_healthy"] for each in embedding),
            "timestamp": now().isoformat(),
        }

    def get_engine_health_status(self) -> dict[str, Any]:
        """Restarts and failures of each engine."""
        settings = self.service.settings
        return {
            "auto_restart_enabled": settings.auto_restart,
            "max_restart_attempts": settings.max_restarts,
            "health_check_interval": settings.poll_interval_s,
            "consecutive_failures_threshold": settings.failures_threshold,
            "engines": {
                engine_id: {
                    "consecutive_failures": entry.member.failures,
                    "restart_count": entry.member.restarts,
                    "last_restart_time": entry.member.restarted_unix,
                    "can_restart": self.service.crew.may_restart(entry.member),
                }
                for engine_id, entry in self._book.here().items()
                if entry.member is not None
            },
        }


def told(entry: Entry) -> dict[str, Any]:
    """An engine as those who start and list engines read it."""
    instance, member = entry.instance, entry.member
    told: dict[str, Any] = {
        "engine_id": instance.instance_id,
        "instance_id": instance.instance_id,
        "model_id": instance.model_name,
        "host": instance.host,
        "port": instance.port or None,
        "gpu_ids": [],
        "tensor_parallel_size": instance.tensor_parallel_size,
        "pipeline_parallel_size": instance.pipeline_parallel_size,
        "memory_per_gpu_gb": None,
        "engine_label": entry.label,
        "engine_kind": entry.engine_kind,
        "status": entry.state.value,
        "uptime_seconds": time.monotonic() - entry.born,
    }
    pid = getattr(member.handle, "pid", None) if member is not None else None
    error = member.info.error if member is not None else None
    return {**told, **({"pid": pid} if pid else {}), **({"error": error} if error else {})}
