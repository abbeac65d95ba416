"""``hybrid`` under the name that SAGE knows: chat, completion and embedding over one set of instances."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sagellm_control_plane.legacy.asking import Asked
from sagellm_control_plane.legacy.batches import EmbeddingBatch, EmbeddingPriority
from sagellm_control_plane.legacy.errors import BadValue
from sagellm_control_plane.policies import Policy, Scene, policy_named
from sagellm_control_plane.policies.hybrid import Hybrid
from sagellm_control_plane.types import ExecutionInstance, ExecutionInstanceType, RequestMetadata, SchedulingDecision

from .base import PlanePolicy

_SHARES = {EmbeddingPriority.HIGH: 0.7, EmbeddingPriority.NORMAL: 0.3, EmbeddingPriority.LOW: 0.1}
"""Of the turns that embeddings get while both kinds wait."""
_LEAST_SHARE = 0.05


@dataclass
class HybridSchedulingConfig:
    """How embeddings stand beside the rest."""

    embedding_batch_size: int = 32
    """Embedding requests of a batch at most."""
    embedding_priority: str = "normal"
    """An :class:`EmbeddingPriority`; ``adaptive`` gives embeddings turns by their share of what waits."""
    llm_fallback_policy: str = "adaptive"
    """Order within a kind."""
    hybrid_instance_ratio: float = 0.7
    """Of an LLM_EMBEDDING instance's places that embeddings leave to the rest."""
    enable_embedding_batching: bool = True
    max_embedding_wait_ms: float = 50.0
    """Longest that fewer than ``min_embedding_batch_size`` are held back."""
    min_embedding_batch_size: int = 1
    prefer_specialized_instances: bool = True
    """Leave instances that do both to those for whom no other has room."""

    def __post_init__(self) -> None:
        try:
            EmbeddingPriority(self.embedding_priority)
        except ValueError:
            names = ", ".join(priority.value for priority in EmbeddingPriority)
            raise BadValue(
                f"embedding_priority must be one of {names} (got {self.embedding_priority!r})", "embedding_priority"
            ) from None
        for name, least, most in (
            ("embedding_batch_size", 1, None),
            ("min_embedding_batch_size", 1, None),
            ("max_embedding_wait_ms", 0, None),
            ("hybrid_instance_ratio", 0, 1),
        ):
            value = getattr(self, name)
            if not value >= least or (most is not None and value > most):
                bounds = f"{least} or more" if most is None else f"between {least} and {most}"
                raise BadValue(f"{name} must be {bounds} (got {value!r})", name)
        policy_named(self.llm_fallback_policy)


class HybridSchedulingPolicy(PlanePolicy):
    """Both kinds take turns; a turn of embeddings is a batch of one model, placed on one instance.

    A decision for an embedding says in its metadata which ``batch_id`` it belongs to, and the batch's ``batch_size``
    and ``batch_texts``.

    Args:
        embedding_batch_size: As in the config, and so are the others.
        embedding_priority: See there.
        llm_fallback_policy: See there.
        hybrid_instance_ratio: See there.
        config: In place of all four.

    Raises:
        ValueError: For a value out of range.
    """

    eligibility_moves = True

    def __init__(
        self,
        embedding_batch_size: int = 32,
        embedding_priority: str = "normal",
        llm_fallback_policy: str = "adaptive",
        hybrid_instance_ratio: float = 0.7,
        config: HybridSchedulingConfig | None = None,
    ) -> None:
        super().__init__("hybrid")
        self.config = config or HybridSchedulingConfig(
            embedding_batch_size, embedding_priority, llm_fallback_policy, hybrid_instance_ratio
        )
        self._share = _SHARES[EmbeddingPriority.NORMAL]
        self._placed: Counter[str] = Counter()
        self.reset_metrics()

    def schedule(self, requests: list[RequestMetadata], instances: list[ExecutionInstance]) -> list[SchedulingDecision]:
        """Decide over both kinds; embeddings that are too few and have not waited long get no decision yet."""
        due = self._due(requests)
        self._share = self._embedding_share(due)
        self._placed.clear()
        decisions = self._decide(self._policy(), due, instances)
        by_id = {request.request_id: request for request in due}
        self._count("held_back", len(requests) - len(due))
        self._batch([(decision, by_id[decision.request_id]) for decision in decisions])
        return decisions

    def prioritize(self, requests: list[RequestMetadata]) -> list[RequestMetadata]:
        """Both kinds by turns."""
        self._share = self._embedding_share(requests)
        return super().prioritize(requests)

    def get_metrics(self) -> dict[str, int | float]:
        """Counts of what was scheduled since the last reset, and the mean batch."""
        batches = self._counts["embedding_batches"]
        size = self._counts["embedding_requests"] / batches if batches else 0.0
        return {**self._counts, "avg_embedding_batch_size": size}

    def reset_metrics(self) -> None:
        """Count from zero."""
        names = ("llm_requests", "embedding_requests", "embedding_texts", "embedding_batches", "held_back")
        self._counts: dict[str, int | float] = dict.fromkeys(names, 0)

    def _policy(self) -> Policy:
        size = self.config.embedding_batch_size if self.config.enable_embedding_batching else 1
        return Hybrid(size, self._share, policy_named(self.config.llm_fallback_policy))

    def _eligible(self, request: RequestMetadata, instances: Sequence[ExecutionInstance]) -> list[ExecutionInstance]:
        found = super()._eligible(request, instances)
        if request.is_embedding_request:
            found = [instance for instance in found if self._leaves_room(instance)]
        if self.config.prefer_specialized_instances:
            special = [each for each in found if each.instance_type is not ExecutionInstanceType.LLM_EMBEDDING]
            if any(instance.can_accept_request for instance in special):
                return special
        return found

    def _leaves_room(self, instance: ExecutionInstance) -> bool:
        if instance.instance_type is not ExecutionInstanceType.LLM_EMBEDDING:
            return True
        kept = round(instance.max_concurrent_requests * self.config.hybrid_instance_ratio)
        there = instance.embedding_active_requests + self._placed[instance.instance_id]
        return there < instance.max_concurrent_requests - kept

    def _decided(self, asked: Asked, instance: ExecutionInstance, scene: Scene) -> dict[str, Any]:
        self._placed[instance.instance_id] += asked.embeds
        return {}

    def _due(self, requests: Sequence[RequestMetadata]) -> list[RequestMetadata]:
        least, patience_s = self.config.min_embedding_batch_size, self.config.max_embedding_wait_ms / 1000
        if least <= 1 or not self.config.enable_embedding_batching:
            return list(requests)
        now = time.time()
        held: set[str] = set()
        by_model: dict[str | None, list[RequestMetadata]] = {}
        for request in requests:
            if request.is_embedding_request:
                by_model.setdefault(request.effective_model_name, []).append(request)
        for waiting in by_model.values():
            oldest = min(request.arrival_time.timestamp() for request in waiting)
            if len(waiting) < least and now - oldest < patience_s:
                held.update(request.request_id for request in waiting)
        return [request for request in requests if request.request_id not in held]

    def _embedding_share(self, requests: Sequence[RequestMetadata]) -> float:
        priority = EmbeddingPriority(self.config.embedding_priority)
        if priority is not EmbeddingPriority.ADAPTIVE:
            return _SHARES[priority]
        if not requests:
            return _SHARES[EmbeddingPriority.NORMAL]
        share = sum(request.is_embedding_request for request in requests) / len(requests)
        return min(1 - _LEAST_SHARE, max(_LEAST_SHARE, share))

    def _batch(self, decided: Sequence[tuple[SchedulingDecision, RequestMetadata]]) -> None:
        """Tell which embeddings were placed together: neighbours of one model on one instance."""
        size = self.config.embedding_batch_size if self.config.enable_embedding_batching else 1
        batch, target = _open(size), ""
        joined: list[tuple[SchedulingDecision, EmbeddingBatch]] = []
        for decision, request in decided:
            if not request.is_embedding_request:
                self._count("llm_requests", 1)
                continue
            if decision.target_instance_id != target or not batch.add_request(request):
                batch, target = _open(size), decision.target_instance_id
                batch.add_request(request)
                self._count("embedding_batches", 1)
            joined.append((decision, batch))
            self._count("embedding_requests", 1)
            self._count("embedding_texts", len(request.embedding_texts or ()))
        for decision, whole in joined:
            facts = {"batch_id": whole.batch_id, "batch_size": whole.size, "batch_texts": whole.total_texts}
            decision.metadata.update(facts)

    def _count(self, name: str, by: int) -> None:
        self._counts[name] += by


def _open(size: int) -> EmbeddingBatch:
    batch = EmbeddingBatch()
    batch.max_size = size
    return batch


__all__ = ["EmbeddingBatch", "EmbeddingPriority", "HybridSchedulingConfig", "HybridSchedulingPolicy"]
