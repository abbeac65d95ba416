"""Runs plans on an encoder: inputs are read whole, side by side, and each becomes a vector.

Knows nothing of scheduling, requests or text.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sagellm_core.core.plan import StepPlan, StepResult
from sagellm_core.models.encoder import Encoder
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType

from .hidden import Hidden
from .inputs import StepInputs, step_inputs
from .pooling import Pooler
from .slots import Slots


class EncoderRunner:
    """One encoder with its slots; it has no cache.

    Args:
        model: Loaded on ``ops``.
        ops: The backend.
        slots: The inputs that are being read.
        pooler: Makes vectors of hidden states.
    """

    cache_bytes = 0

    def __init__(self, model: Encoder, ops: Backend[Any], slots: Slots, pooler: Pooler) -> None:
        self._model = model
        self._ops = ops
        self._slots = slots
        self._pooler = pooler

    def run(self, plan: StepPlan) -> StepResult:
        """Run one step to its end."""
        self._slots.apply(plan)
        if not plan.slots:
            return StepResult(plan.step, [])
        assert not any(plan.num_computed), "an encoder reads an input in one step"
        inputs = step_inputs(plan, self._slots)
        ops = self._ops
        hidden = self._model.encode(
            ops.from_host(inputs.ids.data, DType.INT32),
            ops.from_host(inputs.positions.data, DType.INT32),
            ops.from_host(self._types(plan, inputs).data, DType.INT32),
            ops.plan_segments(plan.num_scheduled),
        )
        return StepResult(plan.step, self._pooler.results(plan, inputs, Hidden(self._ops, hidden)))

    def _types(self, plan: StepPlan, inputs: StepInputs) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Which of its input's two texts each token belongs to, ``[T]``."""
        never = np.iinfo(np.int32).max
        begins = [self._slots.pooled[slot].second for slot in plan.slots]
        second = np.repeat([never if at is None else at for at in begins], plan.num_scheduled)
        types: np.ndarray[Any, np.dtype[np.int32]] = (inputs.positions >= second).astype(np.int32)
        return types
