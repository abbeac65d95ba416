"""What executors share: the instances, what is in flight on each, and figures of what was carried out."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from sagellm_control_plane.legacy.errors import BadValue
from sagellm_control_plane.metrics_collector import Served
from sagellm_control_plane.monitoring import MetricsCollector
from sagellm_control_plane.types import (
    ExecutionInstance,
    PerformanceMetrics,
    RequestMetadata,
    SchedulingDecision,
    now,
)
from sagellm_protocol import ErrorCode, SageLLMError

KEPT = 4096
"""Requests that figures are computed from."""
INSTANCE_FAULTS = (ErrorCode.UNAVAILABLE, ErrorCode.ENGINE_FAILED)
"""Errors that say more of an instance than of the request."""


@dataclass
class Carried:
    """What an executor measures of one request while it carries it out. Times are monotonic seconds."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    first_at: float | None = None
    last_at: float | None = None

    def token(self) -> None:
        """A piece of the answer came."""
        self.last_at = time.monotonic()
        if self.first_at is None:
            self.first_at = self.last_at


class ExecutionCoordinatorBase(abc.ABC):
    """Instances by id, and what is done on them."""

    def __init__(self) -> None:
        self.instances: dict[str, ExecutionInstance] = {}
        self._figures = MetricsCollector(KEPT)
        self._served: deque[Served] = deque(maxlen=KEPT)
        self._active: dict[str, int] = {}
        self._idle: dict[str, asyncio.Event] = {}
        """Set when an instance that somebody waits for has nothing in flight."""
        self._accepted = 0
        self._manager: Any = None

    # --- instances ----------------------------------------------------------------------------------------------------

    def register_instance(self, instance: ExecutionInstance) -> None:
        """Execute on an instance from now on.

        Raises:
            ValueError: Another of its id is registered.
        """
        if self.instances.get(instance.instance_id, instance) is not instance:
            raise BadValue(
                f"instance {instance.instance_id!r} is registered already; unregister it first", "instance_id"
            )
        self.instances[instance.instance_id] = instance
        self._active.setdefault(instance.instance_id, 0)

    def unregister_instance(self, instance_id: str) -> None:
        """Let an instance go; an unknown one is gone already."""
        self.instances.pop(instance_id, None)
        self._active.pop(instance_id, None)

    def get_instance(self, instance_id: str) -> ExecutionInstance | None:
        """An instance; ``None`` for an unknown one."""
        return self.instances.get(instance_id)

    def get_available_instances(self) -> list[ExecutionInstance]:
        """Those that take a request now."""
        return [instance for instance in self.instances.values() if instance.can_accept_request]

    def get_all_instances(self) -> list[ExecutionInstance]:
        """All."""
        return list(self.instances.values())

    async def add_instance(self, instance: ExecutionInstance) -> None:
        """Register an instance and look whether it answers; it is unhealthy until it does."""
        self.register_instance(instance)
        await self.health_check(instance)

    async def remove_instance_gracefully(self, instance_id: str, max_wait_sec: int = 300) -> None:
        """Send an instance nothing new, wait for what it has, and let it go.

        Args:
            instance_id: Which; an unknown one is gone already.
            max_wait_sec: Longest to wait.
        """
        instance = self.instances.get(instance_id)
        if instance is None:
            return
        instance.is_available = False
        if self._active.get(instance_id, 0):
            idle = self._idle.setdefault(instance_id, asyncio.Event())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(idle.wait(), max_wait_sec)
        self.unregister_instance(instance_id)

    # --- requests -----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def execute_request(
        self, request: RequestMetadata, instance: ExecutionInstance, decision: SchedulingDecision
    ) -> dict[str, Any]:
        """Carry a request out on an instance.

        Returns:
            The answer as OpenAI's API would give it.

        Raises:
            SageLLMError: As the request failed. Where the instance is at fault it is unhealthy from then on, and a
                manager that was set is given the request to carry out elsewhere.
        """

    @abc.abstractmethod
    async def health_check(self, instance: ExecutionInstance) -> bool:
        """Whether an instance answers; noted in it."""

    async def health_check_all(self) -> dict[str, bool]:
        """Whether each answers, asked at once."""
        names = list(self.instances)
        found = await asyncio.gather(*(self.health_check(self.instances[name]) for name in names))
        return dict(zip(names, found, strict=True))

    def set_manager_callback(self, manager: Any) -> None:
        """Tell ``manager.on_instance_failure(instance_id, failed_requests)`` of instances that fail."""
        self._manager = manager

    # --- figures ------------------------------------------------------------------------------------------------------

    def get_metrics(self) -> PerformanceMetrics:
        """Figures of all."""
        metrics = self._figures.get_global_metrics()
        metrics.active_requests = sum(self._active.values())
        metrics.total_requests = self._accepted
        return metrics

    def get_instance_metrics(self, instance_id: str) -> dict[str, Any] | None:
        """Figures of one instance; ``None`` for an unknown one."""
        instance = self.instances.get(instance_id)
        if instance is None:
            return None
        self._figures.update_instance_metrics(instance)
        metrics = self._figures.get_instance_metrics(instance_id)
        return asdict(metrics) if metrics is not None else None

    async def get_instance_info(self, instance: ExecutionInstance) -> dict[str, Any] | None:
        """What is known of an instance; ``None`` if it does not answer."""
        return asdict(instance) if await self.health_check(instance) else None

    def served_within(self, interval_sec: float) -> Iterable[Served]:
        """Requests that were over within the last interval; what a metrics collector reads."""
        since = time.monotonic() - interval_sec
        return [one for one in self._served if one.at >= since]

    # --- the end ------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def cleanup(self) -> None:
        """Let go of what is held to reach instances."""

    async def shutdown_all(self) -> None:
        """Let all instances go."""
        for instance_id in list(self.instances):
            self.unregister_instance(instance_id)
        await self.cleanup()

    # --- for those that execute ---------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _carrying(
        self, request: RequestMetadata, instance: ExecutionInstance, decision: SchedulingDecision
    ) -> AsyncIterator[Carried]:
        """Account for a request, whatever comes of it."""
        carried, began = Carried(), time.monotonic()
        request.start_time = now()
        self._occupy(instance, 1)
        self._accepted += 1
        success = False
        try:
            yield carried
            success = True
        except SageLLMError as error:
            if error.code in INSTANCE_FAULTS:
                await self._failed(request, instance)
            raise
        finally:
            self._occupy(instance, -1)
            request.end_time = now()
            request.tokens_generated = carried.output_tokens
            took = time.monotonic() - began
            self._figures.record_request_completion(request, decision, took * 1000, success)
            if success:
                self._note(carried, began, took, instance)

    def _occupy(self, instance: ExecutionInstance, by: int) -> None:
        name = instance.instance_id
        self._active[name] = self._active.get(name, 0) + by
        instance.active_requests = max(0, instance.active_requests + by)
        instance.current_load = instance.active_requests / max(1, instance.max_concurrent_requests)
        if not self._active[name]:
            if name in self._idle:
                self._idle.pop(name).set()
            if name not in self.instances:
                del self._active[name]

    def _note(self, carried: Carried, began: float, took: float, instance: ExecutionInstance) -> None:
        first, last, gaps = carried.first_at, carried.last_at, carried.output_tokens - 1
        self._served.append(
            Served(
                at=began + took,
                prompt_tokens=carried.prompt_tokens,
                output_tokens=carried.output_tokens,
                duration_s=took,
                ttft_s=None if first is None else first - began,
                itl_s=None if first is None or last is None or gaps < 1 else (last - first) / gaps,
            )
        )
        figures = self._figures.get_instance_metrics(instance.instance_id)
        if figures is not None:
            instance.avg_latency_ms = figures.avg_latency_ms

    async def _failed(self, request: RequestMetadata, instance: ExecutionInstance) -> None:
        instance.is_healthy = False
        if self._manager is not None:
            await self._manager.on_instance_failure(instance.instance_id, [(request.request_id, request)])
