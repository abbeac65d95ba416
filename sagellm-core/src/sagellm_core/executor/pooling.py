"""From hidden states to one vector an input: the mean, the first or the last token, or a head's score.

Knows nothing of models or schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagellm_core.core.plan import Pooled, SlotResult, StepPlan
from sagellm_core.loading.pooling import PoolingKind
from sagellm_protocol.backend import Backend

from .hidden import Hidden
from .inputs import StepInputs
from .slots import Slots

Vectors = NDArray[np.float32]
_SMALLEST = 1e-12
"""Least length that a vector is divided by, as torch's ``normalize`` has it."""


@dataclass
class Pooler:
    """Pools what a step computed.

    Attributes:
        ops: The backend.
        slots: Whose rows are whose.
        kind: Which hidden states count.
        score: A head from a token's hidden states ``[R, E]`` to its number ``[R, 1]``, in place of the vector.
        sigmoid: That number goes through a sigmoid.
    """

    ops: Backend[Any]
    slots: Slots
    kind: PoolingKind
    score: Callable[[Any], Any] | None = None
    sigmoid: bool = False
    _sums: dict[int, Vectors] = field(default_factory=dict)

    def results(self, plan: StepPlan, inputs: StepInputs, hidden: Hidden) -> list[SlotResult]:
        """The vectors of the inputs that were read to their end in this step.

        Args:
            plan: The step.
            inputs: What was computed.
            hidden: Hidden states of all its tokens, where any of them belongs to such an input.
        """
        rows = [row for row, slot in enumerate(plan.slots) if slot in self.slots.pooled]
        if not rows:
            return []
        if self.kind == "mean":
            self._add(plan, inputs, rows, hidden.whole)
        done = [row for row in rows if plan.samples[row]]
        if not done:
            return []
        slots = [plan.slots[row] for row in done]
        vectors = self._means(slots) if self.kind == "mean" else self._tokens(inputs, done, hidden.whole)
        return [
            SlotResult(slot, [], vector=self._finished(vector, self.slots.pooled[slot]).tobytes())
            for slot, vector in zip(slots, vectors, strict=True)
        ]

    def _add(self, plan: StepPlan, inputs: StepInputs, rows: Sequence[int], hidden: Any) -> None:
        # A long input is read in several steps, and again from its start after a preemption.
        sums = self._host(self.ops.segment_sum(hidden, inputs.attention.query_lens))
        for row in rows:
            slot = plan.slots[row]
            self._sums[slot] = sums[row] + (self._sums[slot] if plan.num_computed[row] else np.float32(0))

    def _means(self, slots: Sequence[int]) -> Vectors:
        return np.stack([self._sums.pop(slot) / np.float32(self.slots.prompt_len[slot]) for slot in slots])

    def _tokens(self, inputs: StepInputs, rows: Sequence[int], hidden: Any) -> Vectors:
        """The first tokens, which an encoder reads in the same step as the last, or the last."""
        ends = inputs.ends[list(rows)]
        starts = ends - np.asarray(inputs.attention.query_lens)[list(rows)]
        picked = self.ops.take_rows(hidden, (starts if self.kind == "cls" else ends - 1).tolist())
        return self._host(picked if self.score is None else self.score(picked))

    def _host(self, tensor: Any) -> Vectors:
        return np.asarray(self.ops.to_host(tensor), dtype=np.float32)

    def _finished(self, vector: Vectors, how: Pooled) -> Vectors:
        if self.score is not None:
            return np.reciprocal(1 + np.exp(-vector)) if self.sigmoid else vector
        kept = vector[: how.dimensions]
        if not how.normalize:
            return kept
        unit: Vectors = kept / np.float32(max(float(np.linalg.norm(kept)), _SMALLEST))
        return unit
