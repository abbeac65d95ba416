"""What the autoscaler is told of an interval: load, latencies and instances, measured or ``None``.

Read from a Prometheus server, or from whoever executes the requests; nothing is made up where neither knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from .outcomes import mean
from .types import ExecutionInstance, ExecutionInstanceType
from .utils.prometheus_client import PrometheusClient


@dataclass(frozen=True)
class Served:
    """One request that an executor carried out."""

    at: float
    """When it was over, on the executor's clock."""
    prompt_tokens: int
    output_tokens: int
    duration_s: float
    ttft_s: float | None = None
    """To the first token; ``None`` where the answer came in one piece."""
    itl_s: float | None = None
    """Mean time between tokens."""


class Executor(Protocol):
    """What the collector asks of an executor."""

    def get_all_instances(self) -> list[ExecutionInstance]:
        """Its instances."""
        ...

    def served_within(self, interval_sec: float) -> Iterable[Served]:
        """Requests that were over within the last interval."""
        ...


@dataclass
class SystemMetrics:
    """One interval."""

    num_requests: float = 0.0
    avg_isl: float = 0.0
    """Mean prompt tokens."""
    avg_osl: float = 0.0
    """Mean output tokens."""
    avg_ttft_ms: float | None = None
    avg_itl_ms: float | None = None
    num_prefill_instances: int = 0
    num_decode_instances: int = 0
    request_duration_sec: float | None = None
    prefill_throughput_tokens_per_sec: float = 0.0
    decode_throughput_tokens_per_sec: float = 0.0

    def is_valid(self) -> bool:
        """Whether there is load to go by: requests, and the lengths of both their parts."""
        figures = (self.num_requests, self.avg_isl, self.avg_osl)
        return all(math.isfinite(figure) and figure > 0 for figure in figures)


class MetricsCollector:
    """Collects the figures of intervals.

    Args:
        prometheus_url: A Prometheus server that scrapes the gateway; it is asked first.
        namespace: Only series with this label.
        model_name: Only this model's.
        executor_coordinator: An :class:`Executor`; asked for instances, and for requests where there is no server.
    """

    def __init__(
        self,
        prometheus_url: str | None = None,
        namespace: str | None = None,
        model_name: str | None = None,
        executor_coordinator: Executor | None = None,
    ) -> None:
        self.model_name = model_name
        self.executor_coordinator = executor_coordinator
        self.prometheus = PrometheusClient(prometheus_url, namespace, model_name) if prometheus_url else None

    async def collect_metrics(self, interval_sec: int = 60) -> SystemMetrics:
        """The figures of the last interval.

        Raises:
            SageLLMError: The Prometheus server does not answer.
        """
        if self.prometheus is not None:
            metrics = await self._asked(self.prometheus, interval_sec)
        else:
            metrics = self._counted(interval_sec)
        metrics.num_prefill_instances, metrics.num_decode_instances = self._instances()
        metrics.prefill_throughput_tokens_per_sec = metrics.num_requests * metrics.avg_isl / interval_sec
        metrics.decode_throughput_tokens_per_sec = metrics.num_requests * metrics.avg_osl / interval_sec
        return metrics

    async def close(self) -> None:
        """Let go of the server."""
        if self.prometheus is not None:
            await self.prometheus.close()

    async def _asked(self, server: PrometheusClient, interval_sec: int) -> SystemMetrics:
        interval = f"{interval_sec}s"
        ttft = await server.get_avg_time_to_first_token(interval)
        itl = await server.get_avg_inter_token_latency(interval)
        return SystemMetrics(
            num_requests=await server.get_avg_request_count(interval) or 0.0,
            avg_isl=await server.get_avg_input_sequence_tokens(interval) or 0.0,
            avg_osl=await server.get_avg_output_sequence_tokens(interval) or 0.0,
            avg_ttft_ms=None if ttft is None else ttft * 1000,
            avg_itl_ms=None if itl is None else itl * 1000,
            request_duration_sec=await server.get_avg_request_duration(interval),
        )

    def _counted(self, interval_sec: int) -> SystemMetrics:
        if self.executor_coordinator is None:
            return SystemMetrics()
        served = list(self.executor_coordinator.served_within(interval_sec))
        ttft = mean([one.ttft_s for one in served if one.ttft_s is not None])
        itl = mean([one.itl_s for one in served if one.itl_s is not None])
        return SystemMetrics(
            num_requests=float(len(served)),
            avg_isl=mean([float(one.prompt_tokens) for one in served]) or 0.0,
            avg_osl=mean([float(one.output_tokens) for one in served]) or 0.0,
            avg_ttft_ms=None if ttft is None else ttft * 1000,
            avg_itl_ms=None if itl is None else itl * 1000,
            request_duration_sec=mean([one.duration_s for one in served]),
        )

    def _instances(self) -> tuple[int, int]:
        """Those that compute prompts and those that produce tokens; one that does both is counted in both."""
        if self.executor_coordinator is None:
            return 0, 0
        kinds = [each.instance_type for each in self.executor_coordinator.get_all_instances() if each.is_healthy]
        text = [kind for kind in kinds if kind is not ExecutionInstanceType.EMBEDDING]
        return (
            sum(kind is not ExecutionInstanceType.DECODING for kind in text),
            sum(kind is not ExecutionInstanceType.PREFILLING for kind in text),
        )
