"""Many models on few engines: when to compute which prompts, and for how long to decode which model.

Both algorithms of Aegaeon (Xiang et al., SOSP 2025), where an engine changes models between tokens: prompts by grouped
first-come-first-served, answers by weighted round robin. Pure; knows nothing of how models are changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R")
MOST_IN_GROUP = 8
MOST_QUOTA_S = 4.0
LEAST_ALPHA = 0.5


@dataclass
class Group(Generic[R]):
    """Requests for one model whose prompts are computed in a row."""

    model: str
    waiting: list[tuple[R, float]] = field(default_factory=list)
    """With the seconds that each prompt takes."""
    admitted: int = 0
    """Ever: one that has been served still counts, lest a popular model keep its turn for ever."""


class PrefillQueues(Generic[R]):
    """A queue of groups for each engine that computes prompts (algorithm 1).

    Args:
        engines: How many.
        switch_s: Time to change models.
        most: Requests of a group.
    """

    def __init__(self, engines: int, switch_s: float, most: int = MOST_IN_GROUP) -> None:
        self._queues: list[list[Group[R]]] = [[] for _ in range(engines)]
        self._loaded: list[str | None] = [None] * engines
        self._switch_s, self._most = switch_s, most

    def add(self, request: R, model: str, seconds: float) -> int:
        """Queue a prompt: in a group of its model with room, else in a new one where the least work waits.

        Returns:
            The engine.
        """
        for engine, queue in enumerate(self._queues):
            for group in queue:
                if group.model == model and group.admitted < self._most:
                    group.waiting.append((request, seconds))
                    group.admitted += 1
                    return engine
        chosen = min(range(len(self._queues)), key=self.load_s)
        self._queues[chosen].append(Group(model, [(request, seconds)], 1))
        return chosen

    def load_s(self, engine: int) -> float:
        """Seconds of work queued for an engine, changes of model included."""
        total, loaded = 0.0, self._loaded[engine]
        for group in self._queues[engine]:
            total += self._switch_s * (group.model != loaded) + sum(seconds for _, seconds in group.waiting)
            loaded = group.model
        return total

    def groups(self, engine: int) -> Sequence[Group[R]]:
        """What is queued for an engine, in order."""
        return tuple(self._queues[engine])

    def next(self, engine: int) -> tuple[R, str, bool] | None:
        """Take the prompt that an engine computes next.

        Returns:
            The request, its model, and whether that has to be changed to; ``None`` when none waits.
        """
        queue = self._queues[engine]
        if not queue:
            return None
        group = queue[0]
        request, _ = group.waiting.pop(0)
        if not group.waiting:
            queue.pop(0)
        changes = self._loaded[engine] != group.model
        self._loaded[engine] = group.model
        return request, group.model, changes


@dataclass(frozen=True)
class Batch:
    """Answers of one model that are under way on an engine."""

    model: str
    token_slo_s: float
    """Time for a token that is promised."""
    step_s: float
    """Time that one takes."""

    @property
    def lead(self) -> float:
        """Tokens' worth of promised time that a step gains; below 1 the promise cannot be kept even alone."""
        return self.token_slo_s / self.step_s


def quotas(
    batches: Sequence[Batch], switch_s: float, most_s: float = MOST_QUOTA_S, least_alpha: float = LEAST_ALPHA
) -> list[float]:
    """Seconds that each batch decodes for in a round (algorithm 2).

    Decoding runs ahead of the promised pace, and what it has gained is spent while others have the engine. With
    ``c`` the changes of model in a round and ``n`` the leads, ``q_i = c / (n_i (alpha - sum 1/n))``, and ``alpha`` as
    small as keeps every quota within ``most_s``, and one half at least: the share of promises kept is then as good as
    all of them in turn allow. A batch that is alone never changes, and has the whole of ``most_s``.

    Args:
        batches: In the order of the round; several of one model need one change if they are neighbours.
        switch_s: Time to change models.
        most_s: Longest turn.
        least_alpha: Bound of ``alpha``.
    """
    if not batches:
        return []
    models = [batch.model for batch in batches]
    changes = sum(model != models[at - 1] for at, model in enumerate(models))
    total = switch_s * changes
    if total <= 0:
        return [most_s] * len(batches)
    needed = sum(1 / batch.lead for batch in batches)
    alpha = max(total / (min(batch.lead for batch in batches) * most_s) + needed, least_alpha)
    return [total / (batch.lead * (alpha - needed)) for batch in batches]


def round_order(batches: Sequence[Batch]) -> list[Batch]:
    """Batches of one model side by side, in the order in which the models first come."""
    first: dict[str, int] = {}
    for at, batch in enumerate(batches):
        first.setdefault(batch.model, at)
    return sorted(batches, key=lambda batch: first[batch.model])


def least_batches(engines: Sequence[Sequence[Batch]], model: str) -> int:
    """The engine that a new answer goes to: one that decodes its model, else the one with the fewest batches."""
    for engine, batches in enumerate(engines):
        if any(batch.model == model for batch in batches):
            return engine
    return min(range(len(engines)), key=lambda engine: len(engines[engine]))
