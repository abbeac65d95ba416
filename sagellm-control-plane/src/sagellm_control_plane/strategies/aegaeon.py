"""``aegaeon`` under the name that SAGE knows: many models on few instances (Xiang et al., SOSP 2025).

Prompts wait at an instance by groups of one model, answers take turns there by quotas: both algorithms are
:mod:`sagellm_control_plane.pooling`. Whoever runs the instances asks for the next prompt and the next round.
"""

from __future__ import annotations

import time

from sagellm_control_plane.legacy.aegaeon import DecodingBatch, PrefillGroup
from sagellm_control_plane.legacy.asking import Asked, by_arrival
from sagellm_control_plane.legacy.columns import Columns, fitting
from sagellm_control_plane.legacy.errors import BadValue
from sagellm_control_plane.policies.aegaeon import Aegaeon
from sagellm_control_plane.pooling import Batch, PrefillQueues, least_batches, quotas
from sagellm_control_plane.types import ExecutionInstance, RequestMetadata, SchedulingDecision

from .base import SchedulingPolicy, decision_for, order

PREFILL_TPS = 5000.0
"""Prompt tokens a second of an instance that does not tell its own (``prefill_tokens_per_s`` in its metadata)."""

_REASONS = {
    "prefill": "queued in a group of its model",
    "decode": "where its model is decoded, or else the fewest are",
    "embed": "where the smallest share is in use",
}


class AegaeonPolicy(SchedulingPolicy):
    """Grouped first-come-first-served for prompts, weighted rounds for answers.

    Args:
        max_group_size: Prompts of a group.
        qmax: Longest turn of a batch of answers, in seconds.
        min_alpha: Least ``alpha`` of the quotas: the share of promises that is aimed at.
        estimated_scaling_overhead: Seconds that changing models takes.
        use_dynamic_scaling_overhead: Go by what instances tell (``model_switch_s`` in their metadata, the mean of
            those that do) before ``estimated_scaling_overhead``.

    Raises:
        ValueError: For a value out of range.
    """

    def __init__(
        self,
        max_group_size: int = 8,
        qmax: float = 4.0,
        min_alpha: float = 0.5,
        estimated_scaling_overhead: float = 1.0,
        use_dynamic_scaling_overhead: bool = True,
    ) -> None:
        super().__init__("aegaeon")
        for name, value, least in (
            ("max_group_size", max_group_size, 1),
            ("qmax", qmax, 0.001),
            ("min_alpha", min_alpha, 0.001),
            ("estimated_scaling_overhead", estimated_scaling_overhead, 0),
        ):
            if not value >= least:
                raise BadValue(f"{name} must be {least} or more (got {value!r})", name)
        self.max_group_size, self.qmax, self.min_alpha = max_group_size, qmax, min_alpha
        self.estimated_scaling_overhead = estimated_scaling_overhead
        self.use_dynamic_scaling_overhead = use_dynamic_scaling_overhead
        self._switch_s = estimated_scaling_overhead
        self._instances: tuple[str, ...] = ()
        self._queues: PrefillQueues[str] = PrefillQueues(0, self._switch_s, max_group_size)
        self._waiting: dict[str, tuple[RequestMetadata, int]] = {}
        self._speed_tps = PREFILL_TPS
        self._decoding: dict[str, list[DecodingBatch]] = {}

    def schedule(self, requests: list[RequestMetadata], instances: list[ExecutionInstance]) -> list[SchedulingDecision]:
        """Queue prompts at instances, and send answers whose prompt is computed to where their model is decoded.

        A request that is named again stays where it is; one that has begun or ended meanwhile no longer waits.
        """
        usable = [instance for instance in instances if instance.can_accept_request]
        columns = Columns()
        columns.look(usable)
        self._settle(
            [each for each in usable if each.can_accept_llm_request() and each.can_accept_prefilling_request()]
        )
        by_id = {instance.instance_id: instance for instance in usable}
        decisions = []
        for asked in by_arrival(requests):
            phase, target = self._target(asked, usable, columns)
            if target is None:
                continue
            columns.give(columns.rows[target])
            facts = {"policy": self.name, "phase": phase}
            reason = f"aegaeon: {phase}, {_REASONS[phase]}"
            decisions.append(decision_for(asked, by_id[target], columns, reason, self.price_per_gpu_hour, facts))
        return decisions

    def get_next_prefill_request(self, instance_id: str) -> RequestMetadata | None:
        """Take the prompt that an instance is to compute next; ``None`` when none waits there."""
        if instance_id not in self._instances:
            return None
        while (found := self._queues.next(self._instances.index(instance_id))) is not None:
            entry = self._waiting.pop(found[0], None)
            if entry is not None and not _over(entry[0]):
                return entry[0]
        return None

    def prefill_groups(self, instance_id: str) -> list[PrefillGroup]:
        """The prompts that wait at an instance, in the order in which they will be computed."""
        groups: list[PrefillGroup] = []
        if instance_id not in self._instances:
            return groups
        for group in self._queues.groups(self._instances.index(instance_id)):
            waiting = [self._waiting[request_id][0] for request_id, _ in group.waiting if request_id in self._waiting]
            groups.append(PrefillGroup(group.model, waiting, self.max_group_size))
        return groups

    def add_to_decoding_batch(self, request: RequestMetadata, instance_id: str) -> None:
        """Let an answer take part in an instance's rounds, in the batch of its model."""
        model = request.effective_model_name or ""
        batches = self._decoding.setdefault(instance_id, [])
        for batch in batches:
            if batch.model_name == model:
                if all(other.request_id != request.request_id for other in batch.requests):
                    batch.requests.append(request)
                return
        batches.append(DecodingBatch(model, [request]))

    def schedule_decoding_round(self, instance_id: str) -> list[tuple[DecodingBatch, float]]:
        """The turns of an instance's next round: each batch with its seconds. What has ended is taken out."""
        batches = self._decoding.get(instance_id, [])
        for batch in batches:
            batch.requests = [request for request in batch.requests if request.end_time is None]
        batches = [batch for batch in batches if batch.requests]
        if not batches:
            self._decoding.pop(instance_id, None)
            return []
        # One batch a model: they are in the order of a round already.
        self._decoding[instance_id] = batches
        times = quotas([_plain(batch) for batch in batches], self._switch_s, self.qmax, self.min_alpha)
        for batch, seconds in zip(batches, times, strict=True):
            batch.time_quota = seconds
            batch.reset_quota()
        return list(zip(batches, times, strict=True))

    def execute_batch_with_quota(self, batch: DecodingBatch, instance_id: str) -> int:
        """Account for a turn that a batch has had: steps of ``decoding_step_time`` while its quota lasts.

        Runs nothing: whoever runs the instance calls it when the turn is over.

        Returns:
            Steps, which is tokens of each of its answers.
        """
        # What is less than a thousandth short of a step is a rounding error.
        steps = int(batch.remaining_quota / batch.decoding_step_time + 1e-3)
        if batch not in self._decoding.get(instance_id, ()) or steps < 1:
            return 0
        batch.consume_quota(steps * batch.decoding_step_time)
        batch.tokens_executed += steps * len(batch.requests)
        batch.last_execution_time = time.time()
        return steps

    def prioritize(self, requests: list[RequestMetadata]) -> list[RequestMetadata]:
        """By groups of one model, in the order in which they were opened."""
        return [asked.metadata for asked in order(Aegaeon(self.max_group_size), by_arrival(requests))]

    def _settle(self, instances: list[ExecutionInstance]) -> None:
        """Make the queues those of the instances there are, without what has begun elsewhere or ended."""
        names = tuple(instance.instance_id for instance in instances)
        told = [float(each.metadata["model_switch_s"]) for each in instances if "model_switch_s" in each.metadata]
        if self.use_dynamic_scaling_overhead and told:
            self._switch_s = sum(told) / len(told)
        self._speed_tps = min(
            (float(each.metadata.get("prefill_tokens_per_s", PREFILL_TPS)) for each in instances), default=PREFILL_TPS
        )
        gone = any(_over(request) for request, _ in self._waiting.values())
        if names == self._instances and not gone:
            return
        left = [request for request, _ in self._waiting.values() if not _over(request)]
        self._instances, self._waiting = names, {}
        self._queues = PrefillQueues(len(names), self._switch_s, self.max_group_size)
        for asked in by_arrival(left):
            self._queue(asked)

    def _queue(self, asked: Asked) -> str | None:
        if not self._instances:
            return None
        request_id = asked.metadata.request_id
        if request_id not in self._waiting:
            seconds = asked.prompt_tokens / self._speed_tps
            self._waiting[request_id] = (asked.metadata, self._queues.add(request_id, asked.model, seconds))
        return self._instances[self._waiting[request_id][1]]

    def _target(self, asked: Asked, usable: list[ExecutionInstance], columns: Columns) -> tuple[str, str | None]:
        """The part of the work that a request is at, and the instance for it."""
        request = asked.metadata
        if request.is_embedding_request:
            found = fitting(usable, request.request_type, asked.model)
            names = [each.instance_id for each in found]
            return "embed", min(names, key=lambda name: columns.share[columns.rows[name]], default=None)
        if not request.prefill_completed:
            return "prefill", self._queue(asked)
        able = [each.instance_id for each in usable if each.can_accept_decoding_request()]
        if not able:
            return "decode", None
        under_way = [[_plain(batch) for batch in self._decoding.get(name, ())] for name in able]
        return "decode", able[least_batches(under_way, asked.model)]


def _plain(batch: DecodingBatch) -> Batch:
    return Batch(batch.model_name, batch.token_slo_s, batch.decoding_step_time)


def _over(request: RequestMetadata) -> bool:
    return request.prefill_completed or request.start_time is not None or request.end_time is not None
