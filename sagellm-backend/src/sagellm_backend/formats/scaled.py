"""Formats whose scales are tensors beside: integers and 8-bit floats in groups of columns, perhaps in another order.

Knows nothing of the checkpoints that such weights come from, nor of who keeps them packed.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sagellm_backend.dtypes import byte_array
from sagellm_protocol.backend import SCALED, RawWeight, WeightFormat
from sagellm_protocol.errors import ErrorCode, SageLLMError

_PLAIN = (WeightFormat.F32.value, WeightFormat.F16.value, WeightFormat.BF16.value)


def int4(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 1]`` uint8 to ``[n, 2]`` float32, from 0 to 15."""
    return torch.cat((blocks & 0x0F, blocks >> 4), dim=1).float()


def int8(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 1]`` uint8 to ``[n, 1]`` float32, from -128 to 127."""
    return blocks.view(torch.int8).float()


def f8_e4m3(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 1]`` uint8 to ``[n, 1]`` float32."""
    return blocks.view(torch.float8_e4m3fn).float()


def check(raw: RawWeight) -> None:
    """Refuse a weight whose further tensors are missing, or do not fit it.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` naming the tensor.
    """
    rows, width = raw.shape
    scales = raw.extra.get("scales")
    if scales is None:
        raise _unsound(raw, "has no scales")
    fits = len(scales.shape) == 2 and scales.shape[0] == rows and scales.shape[1] and width % scales.shape[1] == 0
    if not fits or scales.format not in _PLAIN:
        raise _unsound(raw, f"of shape {list(raw.shape)} has scales of shape {list(scales.shape)} as {scales.format}")
    zeros = raw.extra.get("zeros")
    if zeros is not None and (zeros.shape != scales.shape or zeros.format not in _PLAIN):
        raise _unsound(raw, f"has zero points of shape {list(zeros.shape)} for scales of shape {list(scales.shape)}")
    order = columns(raw)
    if order is not None and not np.array_equal(np.sort(order), np.arange(width)):
        raise _unsound(raw, f"states an order of columns that does not name each of {width} once")


def columns(raw: RawWeight) -> NDArray[np.int32] | None:
    """Which column each stored one is, ``[E]``, where they are not in order."""
    order = raw.extra.get("columns")
    return None if order is None else byte_array(order.data).view("<i4")


def zeros_of(kind: WeightFormat, zeros: torch.Tensor | None) -> torch.Tensor | float:
    """Zero points ``[r, G, 1]``, or the one that a format has where none are stated."""
    return float(SCALED[kind]) if zeros is None else zeros.unsqueeze(2)


def scale(
    numbers: torch.Tensor, kind: WeightFormat, scales: torch.Tensor, zeros: torch.Tensor | None, raw: RawWeight
) -> torch.Tensor:
    """Numbers to values, columns put in order.

    Args:
        numbers: ``[r, E]`` float32.
        kind: Their format.
        scales: ``[r, G]`` float32.
        zeros: Likewise, where they are stated.
        raw: The weight they are rows of.
    """
    shifted = numbers.unflatten(1, (scales.shape[1], -1)) - zeros_of(kind, zeros)
    values: torch.Tensor = (shifted * scales.unsqueeze(2)).flatten(1)  # [r, E]
    order = columns(raw)
    if order is None:
        return values
    ordered = torch.empty_like(values)
    ordered[:, torch.from_numpy(order.astype(np.int64))] = values
    return ordered


def _unsound(raw: RawWeight, what: str) -> SageLLMError:
    return SageLLMError(ErrorCode.INVALID_REQUEST, f"{raw.name}, stored as {raw.format}, {what}")
