"""Scheduling as SAGE asked for it: a list of requests and a list of instances in, decisions out.

The decisions are those of the live plane: its queue, its policies and its rounds, over instances as columns. Nothing is
remembered between two calls unless a policy says so.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sagellm_control_plane.board import Rows
from sagellm_control_plane.legacy.asking import Asked, by_arrival
from sagellm_control_plane.legacy.columns import Columns, LeastShare, fitting
from sagellm_control_plane.policies import Policy, Scene
from sagellm_control_plane.scheduling import Scheduler
from sagellm_control_plane.types import ExecutionInstance, ParallelismType, RequestMetadata, SchedulingDecision

HOUR_S = 3600.0


class SchedulingPolicy(ABC):
    """An order of service and a choice of instances.

    Args:
        name: What it is called.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.price_per_gpu_hour = 1.0

    @abstractmethod
    def schedule(self, requests: list[RequestMetadata], instances: list[ExecutionInstance]) -> list[SchedulingDecision]:
        """Give instances to requests.

        Args:
            requests: Those that wait.
            instances: All there are.

        Returns:
            Decisions, in the order of service; none for a request that no instance takes now. Each counts for those
            after it.
        """

    @abstractmethod
    def prioritize(self, requests: list[RequestMetadata]) -> list[RequestMetadata]:
        """Requests in the order of service, as if there were room for all."""


class PlanePolicy(SchedulingPolicy):
    """One of the plane's policies under SAGE's methods."""

    eligibility_moves = False
    """Whether a decision may change which instances are eligible for the next."""

    def _policy(self) -> Policy:
        """The plane's policy, fresh."""
        raise NotImplementedError

    def schedule(self, requests: list[RequestMetadata], instances: list[ExecutionInstance]) -> list[SchedulingDecision]:
        """Decide as the plane would; see :class:`SchedulingPolicy`."""
        return self._decide(self._policy(), requests, instances)

    def prioritize(self, requests: list[RequestMetadata]) -> list[RequestMetadata]:
        """In the plane's order."""
        return [asked.metadata for asked in order(self._policy(), by_arrival(requests))]

    def _eligible(self, request: RequestMetadata, instances: Sequence[ExecutionInstance]) -> list[ExecutionInstance]:
        """Instances that may serve a request, room aside."""
        return fitting(instances, request.request_type, request.effective_model_name or "")

    def _decide(
        self, policy: Policy, requests: Sequence[RequestMetadata], instances: Sequence[ExecutionInstance]
    ) -> list[SchedulingDecision]:
        by_id = {instance.instance_id: instance for instance in instances}
        columns, now = Columns(), time.time()
        columns.look(instances)
        scheduler = _Round(columns, _Fitting(self, instances, columns), policy)
        for asked in by_arrival(requests):
            scheduler.enqueue(asked, now)
        scene = scheduler.scene(now)
        reason = policy.reason(scene)
        decisions: list[SchedulingDecision] = []

        def book(asked: Asked, row: int) -> None:
            columns.give(row)
            instance = by_id[columns.board.engine_ids[row]]
            facts = {"policy": self.name, "order": reason, **self._decided(asked, instance, scene)}
            decisions.append(decision_for(asked, instance, columns, reason, self.price_per_gpu_hour, facts))

        scheduler.round(now, book)
        return decisions

    def _decided(self, asked: Asked, instance: ExecutionInstance, scene: Scene) -> dict[str, Any]:
        """Note a decision; returns what there is to say of it."""
        return {}


def order(policy: Policy, waiting: Sequence[Asked]) -> list[Asked]:
    """Requests as a policy serves them where there is room for all."""
    columns = Columns()
    model_free = ExecutionInstance("any", "", 0, "", max_concurrent_requests=len(waiting) + 1)
    columns.look([model_free])
    served: list[Asked] = []
    scheduler = _Round(columns, _Anywhere(), policy)
    now = time.time()
    for asked in waiting:
        scheduler.enqueue(asked, now)
    scheduler.round(now, lambda asked, row: served.append(asked))
    return served


def decision_for(
    asked: Asked,
    instance: ExecutionInstance,
    columns: Columns,
    reason: str,
    price_per_gpu_hour: float,
    facts: dict[str, Any],
) -> SchedulingDecision:
    """A decision with what follows from the instance's figures; what they do not tell is ``None``."""
    row = columns.rows[instance.instance_id]
    latency_s, tokens_per_s = float(columns.board.latency_s[row]), instance.throughput_tokens_per_sec
    tokens = asked.prompt_tokens + asked.output_tokens
    price_s = instance.gpu_count * price_per_gpu_hour / HOUR_S
    return SchedulingDecision(
        request_id=asked.metadata.request_id,
        target_instance_id=instance.instance_id,
        parallelism_strategy=asked.metadata.parallelism_hint or parallelism_of(instance),
        estimated_latency_ms=None if np.isnan(latency_s) else latency_s * 1000,
        estimated_cost=price_s * tokens / tokens_per_s if tokens_per_s else None,
        tensor_parallel_size=instance.tensor_parallel_size,
        pipeline_parallel_size=instance.pipeline_parallel_size,
        reason=reason,
        confidence=1.0 if not np.isnan(latency_s) else 0.0,
        metadata=facts,
    )


def parallelism_of(instance: ExecutionInstance) -> ParallelismType:
    """How an instance's model is spread."""
    spread = [
        kind
        for kind, size in (
            (ParallelismType.TENSOR_PARALLEL, instance.tensor_parallel_size),
            (ParallelismType.PIPELINE_PARALLEL, instance.pipeline_parallel_size),
            (ParallelismType.DATA_PARALLEL, instance.data_parallel_size),
        )
        if size > 1
    ]
    if len(spread) > 1:
        return ParallelismType.HYBRID
    return spread[0] if spread else ParallelismType.TENSOR_PARALLEL


class _Round(Scheduler[Asked]):
    """The plane's scheduler, with the mean load that instances tell of."""

    def __init__(self, columns: Columns, candidates: _Fitting | _Anywhere, policy: Policy) -> None:
        self._columns = columns
        super().__init__(columns.board, candidates, policy, LeastShare(columns), random.Random(0))

    def scene(self, now: float, policy: Policy | None = None) -> Scene:
        """As the plane's."""
        ready = self.board.ready
        mean = float(self._columns.share[ready].mean()) if ready.any() else 0.0
        return replace(super().scene(now, policy), mean_load=mean)


class _Fitting:
    """Who may serve what, by the instances' own word."""

    def __init__(self, policy: PlanePolicy, instances: Sequence[ExecutionInstance], columns: Columns) -> None:
        self._policy, self._instances, self._columns = policy, instances, columns
        self._all = columns.rows_of(instances)
        self._found: dict[tuple[object, str], Rows] = {}

    def rows(self, model: str) -> Rows:
        """All: instances of a kind are told apart by :meth:`able`."""
        return self._all

    def able(self, request: Asked, rows: Rows) -> Rows:
        """Those of its kind and model."""
        key = (request.metadata.request_type, request.model)
        if key not in self._found or self._policy.eligibility_moves:
            self._found[key] = self._columns.rows_of(self._policy._eligible(request.metadata, self._instances))
        return np.intersect1d(rows, self._found[key], assume_unique=True)

    def sequences(self, request: Asked) -> int:
        """One."""
        return 1

    def wished(self, request: Asked) -> int | None:
        """The instance it prefers."""
        name = request.metadata.preferred_instance_id
        return self._columns.rows.get(name) if name is not None else None


class _Anywhere:
    """One place that takes everything."""

    def rows(self, model: str) -> Rows:
        """That one."""
        return np.zeros(1, np.int64)

    def able(self, request: Asked, rows: Rows) -> Rows:
        """That one."""
        return rows

    def sequences(self, request: Asked) -> int:
        """One."""
        return 1

    def wished(self, request: Asked) -> int | None:
        """None."""
        return None
