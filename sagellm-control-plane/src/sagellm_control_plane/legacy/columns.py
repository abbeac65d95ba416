"""Instances of the replaced control plane as the board that policies and routers read, and what only they know.

Instances tell of requests and of a share of load, not of tokens, so balance between them goes by that share.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np

from sagellm_control_plane.board import UNBOUNDED, Board, Floats, Place, Role, Rows
from sagellm_control_plane.observing import Subject
from sagellm_control_plane.routing.base import Router, column, tied_least
from sagellm_control_plane.types import ExecutionInstance, ExecutionInstanceType, RequestType

KEPT = 4096
"""Instances remembered that are not among the candidates now."""
REQUEST_TOKENS = 256
"""Of work reckoned for a request of which only the number is told."""
MOST_SHARE = 0.99
_ROLES = {ExecutionInstanceType.PREFILLING: Role.PREFILL, ExecutionInstanceType.DECODING: Role.DECODE}


class Columns:
    """Rows by instance id. A row keeps what was learned of an instance between two looks.

    What is given out counts at once: an instance's figures are taken to be older than the requests given to it since
    they last changed.
    """

    def __init__(self) -> None:
        self.board = Board()
        self.rows: dict[str, int] = {}
        self.share: Floats = np.zeros(0)
        """Of its capacity that an instance has in use, by row; may pass 1."""
        self.service_s: Floats = np.zeros(0)
        """Latency of an instance as if it were idle; NaN while unmeasured."""
        self._seen: dict[str, tuple[int, float, float | None, float | None]] = {}
        self._given: dict[str, int] = {}

    def look(self, instances: Iterable[ExecutionInstance], router: Router | None = None) -> None:
        """Take in the figures of now; ``router`` is told of those that come and go."""
        latest = {instance.instance_id: instance for instance in instances}
        for instance in latest.values():
            if instance.instance_id not in self.rows:
                self._join(instance, router)
            else:
                # The one looked at last is forgotten last.
                self.rows[instance.instance_id] = self.rows.pop(instance.instance_id)
            self._take_in(instance)
        for name in list(self.rows)[: max(0, len(self.rows) - max(KEPT, len(latest)))]:
            self._leave(name, router)

    def rows_of(self, instances: Iterable[ExecutionInstance]) -> Rows:
        """Their rows, ascending."""
        return np.array(sorted({self.rows[instance.instance_id] for instance in instances}), np.int64)

    def give(self, row: int) -> None:
        """Count a request that was given to an instance, before the instance itself tells of it."""
        name = self.board.engine_ids[row]
        self._given[name] = self._given.get(name, 0) + 1
        self._weigh(row, name)

    def measured(self, name: str, latency_s: float) -> None:
        """Take a latency that was measured here rather than the one the instance tells."""
        row = self.rows[name]
        self.service_s[row] = latency_s * (1 - min(MOST_SHARE, max(0.0, self._seen[name][1])))
        self._weigh(row, name)

    def _join(self, instance: ExecutionInstance, router: Router | None) -> None:
        island = instance.metadata.get("island")
        if island is None and instance.nvlink_peers:
            island = "\0".join(sorted({instance.instance_id, *instance.nvlink_peers}))
        host = instance.machine_id if instance.machine_id is not None else instance.host
        row = self.board.join(instance.instance_id, Place(host, instance.rack_id, island))
        self.rows[instance.instance_id] = row
        self.share, self.service_s = column(self.share, self.board), column(self.service_s, self.board, np.nan)
        if router is not None:
            router.joined(row, self.board)

    def _leave(self, name: str, router: Router | None) -> None:
        row = self.rows.pop(name)
        self._seen.pop(name, None)
        self._given.pop(name, None)
        if router is not None:
            router.gone(row)
        self.board.leave(row)

    def _take_in(self, instance: ExecutionInstance) -> None:
        board, row, name = self.board, self.rows[instance.instance_id], instance.instance_id
        figures = (
            instance.active_requests,
            instance.current_load,
            instance.avg_latency_ms,
            instance.throughput_tokens_per_sec,
        )
        if self._seen.get(name) != figures:
            self._seen[name], self._given[name] = figures, 0
        board.ready[row] = instance.can_accept_request
        board.throughput_tps[row] = instance.throughput_tokens_per_sec or np.nan
        board.describe(
            row,
            capacity=max(1, instance.max_concurrent_requests),
            devices=max(1, instance.gpu_count),
            max_len=UNBOUNDED,
            role=_ROLES.get(instance.instance_type, Role.BOTH),
        )
        free = min(MOST_SHARE, max(0.0, instance.current_load))
        self.service_s[row] = (instance.avg_latency_ms or np.nan) / 1000 * (1 - free)
        self._weigh(row, name)

    def _weigh(self, row: int, name: str) -> None:
        board = self.board
        active, load, _, _ = self._seen[name]
        given = self._given.get(name, 0)
        board.sequences[row] = active + given
        board.foreign_tokens[row] = (active + given) * REQUEST_TOKENS
        self.share[row] = load + given / board.capacity[row]
        board.weight[row] = max(0.0, 1 - load)
        # Time in a queue with one server grows as one over what is free (M/M/1): a burst sees itself.
        board.latency_s[row] = self.service_s[row] / (1 - min(MOST_SHARE, max(0.0, self.share[row])))


class LeastShare(Router):
    """The smallest share of its capacity in use, then the fewest requests, then the first listed."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Compare shares."""
        tied = tied_least(rows, self._columns.share[rows])
        return int(tied_least(tied, board.sequences[tied])[0])


def serves(instance: ExecutionInstance, kind: RequestType, model: str) -> bool:
    """Whether an instance is of a kind and model; an empty model is any."""
    if not instance.can_handle_request_type(kind):
        return False
    loaded = {instance.model_name}
    if kind is RequestType.EMBEDDING and instance.embedding_model_loaded is not None:
        loaded.add(instance.embedding_model_loaded)
    return not model or model in loaded


def fitting(instances: Sequence[ExecutionInstance], kind: RequestType, model: str) -> list[ExecutionInstance]:
    """Those that serve a kind and model, whether or not they have room."""
    return [instance for instance in instances if serves(instance, kind, model)]
