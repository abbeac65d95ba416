"""From a plan and the slots to what one forward pass reads: token ids, positions, who attends to what.

Vectorised over all tokens of the step. Knows nothing of models or devices.
"""

from __future__ import annotations

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
        ids: Token ids, ``[T]`` int32, the plan's sequences one after another.
        positions: Their positions, ``[T]`` int32.
        attention: Lengths and block tables.
        ends: Index one past each sequence's last token, ``[S]``.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    attention: AttentionBatch
    ends: NDArray[np.int64]


def step_inputs(plan: StepPlan, slots: Slots) -> StepInputs:
    """Inputs of a plan that has at least one row."""
    slot = np.asarray(plan.slots, dtype=np.int64)
    computed = np.asarray(plan.num_computed, dtype=np.int64)
    context = [before + new for before, new in zip(plan.num_computed, plan.num_scheduled, strict=True)]
    assert min(plan.num_scheduled) > 0, "every row computes something"
    assert (slots.length[slot] >= context).all(), "a token cannot be computed before it is known"
    if max(plan.num_scheduled) == 1:  # decoding alone, where little else is worth the time
        ends, row, positions = np.arange(1, len(slot) + 1), slot, computed
    else:
        scheduled = np.asarray(plan.num_scheduled, dtype=np.int64)
        ends = np.cumsum(scheduled)
        row = np.repeat(slot, scheduled)  # [T]
        positions = np.arange(ends[-1]) - np.repeat(ends - scheduled - computed, scheduled)  # [T]
    return StepInputs(
        ids=slots.tokens[row, positions],
        positions=positions.astype(np.int32),
        attention=AttentionBatch(plan.num_scheduled, context, slots.tables(plan.slots, max(context))),
        ends=ends,
    )
