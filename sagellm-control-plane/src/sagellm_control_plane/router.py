"""Choice of an instance as SAGE asked for it, by the plane's own routers over instances as columns.

What a router learns (turns, prefixes, sessions) is kept from one choice to the next.
"""

from __future__ import annotations

import random
import time
from collections import OrderedDict, deque

from .legacy.asking import Asked
from .legacy.columns import Columns, LeastShare, fitting
from .legacy.errors import BadValue
from .outcomes import mean, percentile
from .routing import TABLE, Router, router_named
from .types import ExecutionInstance, RequestMetadata, SchedulingDecision

REMEMBERED = 65536
"""Users whose instance was set, and instances whose latencies are kept."""
LATENCIES = 256
"""Of an instance, that figures are computed from."""
ALGORITHMS = {
    "weighted_round_robin": "weighted",
    "least_connections": "least_load",
    "least_response_time": "lowest_latency",
    "power_of_two": "power_of_two",
}
"""The balancer's algorithms, and the routers they are."""


class RequestRouter:
    """Chooses an instance for a request.

    Args:
        routing_strategy: ``load_balanced`` (the smallest share in use), or a name of
            :data:`sagellm_control_plane.routing.TABLE`.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for an unknown name, listing those there are.
    """

    def __init__(self, routing_strategy: str = "load_balanced") -> None:
        self.routing_strategy = routing_strategy
        self._columns = Columns()
        self._balanced = LeastShare(self._columns)
        self._router: Router = self._balanced if routing_strategy == "load_balanced" else router_named(routing_strategy)
        self._users: OrderedDict[str, str] = OrderedDict()
        self._number = 0
        self._rng = random.Random()

    def route(
        self,
        request: RequestMetadata,
        instances: list[ExecutionInstance],
        decision: SchedulingDecision | None = None,
    ) -> ExecutionInstance | None:
        """Choose.

        The decision's instance goes first, then the one the request prefers, then under ``affinity`` the user's own;
        each only if it takes the request now. The choice counts at once for those that follow.

        Args:
            request: What is to be placed.
            instances: All there are.
            decision: What a policy decided, if one did.

        Returns:
            The instance; ``None`` when none takes the request now.
        """
        self._columns.look(instances, self._router)
        fits = fitting(instances, request.request_type, request.effective_model_name or "")
        able = {instance.instance_id: instance for instance in fits if instance.can_accept_request}
        if not able:
            return None
        self._number += 1
        asked = Asked(request, self._number)
        wishes = (
            decision.target_instance_id if decision is not None else None,
            request.preferred_instance_id,
            self._users.get(request.user_id) if request.user_id is not None else None,
        )
        now = time.time()
        chosen = next((able[name] for name in wishes if name is not None and name in able), None)
        if chosen is None:
            rows = self._columns.rows_of(able.values())
            row = self._router.choose(asked, self._columns.board, rows, now, self._rng)
            chosen = able[self._columns.board.engine_ids[row]]
        row = self._columns.rows[chosen.instance_id]
        self._columns.give(row)
        self._router.placed(asked, row, now)
        # Whether it begins is not told here; what waits at an instance, its own figures say.
        self._router.left(asked, row, now)
        return chosen

    def update_affinity(self, user_id: str, instance_id: str) -> None:
        """Send a user to an instance from now on, while that takes requests."""
        self._users[user_id] = instance_id
        self._users.move_to_end(user_id)
        if len(self._users) > REMEMBERED:
            self._users.popitem(last=False)

    def clear_affinity(self, user_id: str | None = None) -> None:
        """Forget where a user was sent; all of them without an id."""
        if user_id is None:
            self._users.clear()
        else:
            self._users.pop(user_id, None)


class LoadBalancer:
    """Chooses an instance for work of which nothing is known."""

    def __init__(self) -> None:
        self._columns: dict[str, Columns] = {}
        self._routers: dict[str, Router] = {}
        self._requests: dict[str, int] = {}
        self._latencies: OrderedDict[str, deque[float]] = OrderedDict()
        self._number = 0
        self._rng = random.Random()

    def select_instance(
        self, instances: list[ExecutionInstance], algorithm: str = "weighted_round_robin"
    ) -> ExecutionInstance | None:
        """Choose.

        Args:
            instances: All there are.
            algorithm: ``weighted_round_robin`` (in turn, by free capacity), ``least_connections``,
                ``least_response_time`` (by what was recorded, else by what the instance tells), ``power_of_two``, or
                another router's name.

        Returns:
            The instance; ``None`` when none takes requests now.

        Raises:
            ValueError: For an unknown name, listing those there are.
        """
        if algorithm not in self._routers:
            if algorithm not in ALGORITHMS and algorithm not in TABLE:
                known = ", ".join(sorted({*ALGORITHMS, *TABLE}))
                raise BadValue(f"unknown algorithm {algorithm!r}; there are {known}", "algorithm")
            self._routers[algorithm] = router_named(ALGORITHMS.get(algorithm, algorithm))
            self._columns[algorithm] = Columns()
        router, columns = self._routers[algorithm], self._columns[algorithm]
        columns.look(instances, router)
        able = {instance.instance_id: instance for instance in instances if instance.can_accept_request}
        if not able:
            return None
        for name in able:
            if name in self._latencies:
                columns.measured(name, sum(self._latencies[name]) / len(self._latencies[name]))
        self._number += 1
        asked = Asked(RequestMetadata(f"balanced-{self._number}"), self._number)
        now = time.time()
        row = router.choose(asked, columns.board, columns.rows_of(able.values()), now, self._rng)
        columns.give(row)
        router.placed(asked, row, now)
        router.left(asked, row, now)
        return able[columns.board.engine_ids[row]]

    def record_request(self, instance_id: str) -> None:
        """Count a request that an instance was sent."""
        self._requests[instance_id] = self._requests.get(instance_id, 0) + 1

    def record_latency(self, instance_id: str, latency_ms: float) -> None:
        """Note how long one took.

        Raises:
            ValueError: For a negative time.
        """
        if not latency_ms >= 0:
            raise BadValue(f"latency_ms must be 0 or more (got {latency_ms!r})", "latency_ms")
        self._latencies.setdefault(instance_id, deque(maxlen=LATENCIES)).append(latency_ms / 1000)
        self._latencies.move_to_end(instance_id)
        if len(self._latencies) > REMEMBERED:
            self._latencies.popitem(last=False)

    def get_stats(self, instance_id: str) -> dict[str, float]:
        """``total_requests``, and once latencies were recorded ``avg_latency_ms`` and its percentiles."""
        latencies = [seconds * 1000 for seconds in self._latencies.get(instance_id, ())]
        figures = {
            "total_requests": float(self._requests.get(instance_id, 0)),
            "avg_latency_ms": mean(latencies),
            "p50_latency_ms": percentile(latencies, 0.50),
            "p95_latency_ms": percentile(latencies, 0.95),
            "p99_latency_ms": percentile(latencies, 0.99),
        }
        return {name: value for name, value in figures.items() if value is not None}
