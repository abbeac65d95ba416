"""From a plan and the slots to what one forward pass reads: token ids, positions, who attends to what.

Vectorised over all tokens of the step. Knows nothing of models or devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagellm_core.core.plan import StepPlan
from sagellm_protocol.backend import AttentionBatch

from .slots import Slots


@dataclass(frozen=True)
class StepInputs:
    """One step's inputs on the host.

    Attributes:
        ids: Token ids, ``[T]`` int32, the plan's sequences one after another, each with its drafts.
        positions: Their positions, ``[T]`` int32.
        attention: Lengths and block tables.
        ends: Index one past each sequence's last token or draft, ``[S]``.
        drafted: How many of each sequence's tokens are drafts, ``[S]``.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    attention: AttentionBatch
    ends: NDArray[np.int64]
    drafted: NDArray[np.int64]

    def newest(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """Indices of some sequences' last tokens that are no drafts, each with those of its drafts behind it."""
        counts = self.drafted[rows] + 1
        ends = np.cumsum(counts)
        found: NDArray[np.int64] = np.arange(ends[-1]) - np.repeat(ends - self.ends[rows], counts)
        return found


def step_inputs(plan: StepPlan, slots: Slots) -> StepInputs:
    """Inputs of a plan that has at least one row."""
    slot = np.asarray(plan.slots, dtype=np.int64)
    computed = np.asarray(plan.num_computed, dtype=np.int64)
    counts, drafted = plan.num_scheduled, slots.drafted[slot]
    if plan.drafts:
        counts = (np.asarray(counts) + drafted).tolist()
    context = [before + new for before, new in zip(plan.num_computed, counts, strict=True)]
    assert min(plan.num_scheduled) > 0, "every row computes something"
    assert (slots.length[slot] + drafted >= context).all(), "a token cannot be computed before it is known"
    if max(counts) == 1:  # decoding alone, where little else is worth the time
        ends, row, positions = np.arange(1, len(slot) + 1), slot, computed
    else:
        scheduled = np.asarray(counts, dtype=np.int64)
        ends = np.cumsum(scheduled)
        row = np.repeat(slot, scheduled)  # [T]
        positions = np.arange(ends[-1]) - np.repeat(ends - scheduled - computed, scheduled)  # [T]
    return StepInputs(
        ids=slots.tokens[row, positions],
        positions=positions.astype(np.int32),
        attention=AttentionBatch(counts, context, slots.tables(plan.slots, max(context))),
        ends=ends,
        drafted=drafted,
    )
