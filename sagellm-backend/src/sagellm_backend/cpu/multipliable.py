"""What checkpoints hold, rewritten in what native kernels multiply where that is the same weight.

Knows nothing of the kernels themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from sagellm_backend.formats import format_of, scaled
from sagellm_backend.formats.exact import mxfp4_as_q5_0, scaled_as_blocks
from sagellm_protocol.backend import SCALED, RawWeight, WeightFormat

REWRITTEN: Mapping[WeightFormat, Callable[[RawWeight], RawWeight | None]] = {
    WeightFormat.MXFP4: mxfp4_as_q5_0,
    WeightFormat.INT4: scaled_as_blocks,
    WeightFormat.INT8: scaled_as_blocks,
}
"""Formats that have another with the same values, by what rewrites them if a weight allows it."""


def multipliable(
    parts: Sequence[RawWeight], backend: str, *, reordered: bool
) -> tuple[list[RawWeight], torch.Tensor | None]:
    """Parts of one weight, each rewritten where it can be.

    Args:
        parts: Matrices of equal E.
        backend: Whose they are to be, for messages.
        reordered: Whether columns may stay in their stored order, where that is one order for all parts. A part whose
            columns must be put in order can only be expanded.

    Returns:
        The parts, and which column each stored one is, ``[E]`` int64, if they are in another order.

    Raises:
        SageLLMError: As :func:`~sagellm_backend.formats.format_of`.
    """
    orders = [scaled.columns(part) if format_of(part, backend) in SCALED else None for part in parts]
    common = orders[0] if reordered else None
    if common is None or not all(order is not None and np.array_equal(order, common) for order in orders):
        return [_rewritten(part) if order is None else part for part, order in zip(parts, orders, strict=True)], None
    return [_rewritten(_as_stored(part)) for part in parts], torch.from_numpy(common.astype(np.int64))


def _as_stored(part: RawWeight) -> RawWeight:
    """The weight whose columns are in the order that they are stored in."""
    return replace(part, extra={name: extra for name, extra in part.extra.items() if name != "columns"})


def _rewritten(part: RawWeight) -> RawWeight:
    rewrite = REWRITTEN.get(WeightFormat(part.format))
    return part if rewrite is None else rewrite(part) or part
