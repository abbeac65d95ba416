"""The forward pass of a step in which rows go through adapters.

Where a backend computes steps without adapters as units of its own, those rows are computed apart, as in a step without
adapters: an adapter beside them must not change how their numbers are rounded. Knows nothing of adapters' weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sagellm_core.core.plan import StepPlan
from sagellm_core.layers.adapted import Run
from sagellm_core.models.base import AdaptableModel
from sagellm_protocol.backend import Backend

from .hidden import Tokens
from .inputs import StepInputs, step_inputs
from .slots import Slots

Forward = Callable[[StepInputs, "Tokens | None"], Any]
"""From inputs, and which of their tokens are read, to hidden states ``[R, E]``."""


def adapted_forward(
    plan: StepPlan,
    inputs: StepInputs,
    read: Tokens | None,
    slots: Slots,
    model: AdaptableModel,
    ops: Backend[Any],
    forward: Forward,
) -> Any:
    """Hidden states of a step's tokens, ``[T, E]``, or ``[R, E]`` of those that are read.

    Args:
        plan: Its rows without adapters come first, then those of each adapter side by side.
        inputs: Of the whole plan.
        read: Tokens whose states are wanted, ascending; ``None`` for all.
        slots: Which of them have adapters.
        model: Whose projections are adapted.
        ops: The backend it is loaded on.
        forward: Computes some tokens.
    """
    keys = [slots.adapters.get(slot) for slot in plan.slots]
    plain = keys.count(None)
    assert not any(keys[:plain]), "rows without an adapter come first"
    if plain == len(keys):
        return forward(inputs, read)
    if not plain or not model.fused:
        with model.adapting.step(_runs(keys, inputs.ends)):
            return forward(inputs, read)
    begin = int(inputs.ends[plain - 1])
    plain_read = adapted_read = None
    if read is not None:
        plain_read, adapted_read = read[read < begin], read[read >= begin] - begin
    first = forward(step_inputs(_part(plan, 0, plain), slots), plain_read)
    with model.adapting.step(_runs(keys[plain:], inputs.ends[plain:] - begin)):
        second = forward(step_inputs(_part(plan, plain, len(keys)), slots), adapted_read)
    return ops.concat([first, second], 0)


def _part(plan: StepPlan, begin: int, end: int) -> StepPlan:
    """The plan's rows from one to before another."""
    return msgspec.structs.replace(
        plan,
        slots=plan.slots[begin:end],
        num_computed=plan.num_computed[begin:end],
        num_scheduled=plan.num_scheduled[begin:end],
        samples=plan.samples[begin:end],
        drafts=plan.drafts[begin:end],
    )


def _runs(keys: Sequence[str | None], ends: NDArray[np.int64]) -> list[Run]:
    """Tokens of each adapter, given one past the last of each row."""
    runs: list[Run] = []
    token = 0
    for key, rows in groupby(zip(keys, ends.tolist(), strict=True), key=lambda row: row[0]):
        *_, (_, end) = rows
        if key is not None:
            runs.append((token, end, key))
        token = end
    return runs
