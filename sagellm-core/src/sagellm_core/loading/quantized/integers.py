"""Integers packed into words of 32 bits, as GPTQ, AWQ and compressed-tensors keep them, brought to scaled formats.

Knows nothing of modules' names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagellm_protocol.backend import SCALED, RawWeight, WeightFormat

from .base import Array, Groups, Module, scaled

Bytes = NDArray[np.uint8]


def unpack(words: Array, bits: int, count: int) -> Bytes:
    """The first ``count`` numbers of each row of words: the lowest bits of the first word first, and none left out.

    Args:
        words: ``[r, n]``, 32 bits each.
        bits: Of a number, up to 8.
        count: Numbers of a row.

    Returns:
        ``[r, count]``.
    """
    data: Bytes = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    if bits == 8:
        return data[:, :count]
    if bits == 4:
        return np.stack((data & 15, data >> 4), axis=-1).reshape(len(data), -1)[:, :count]
    each = np.unpackbits(data, axis=1, bitorder="little")[:, : count * bits].reshape(len(data), count, bits)
    numbers: Bytes = np.packbits(each, axis=-1, bitorder="little")[..., 0]
    return numbers


def integers(
    module: Module, bits: int, numbers: Bytes, scales: RawWeight, zeros: NDArray[Any] | None, groups: Groups
) -> RawWeight:
    """Unsigned integers as a weight: ``int4`` where they have up to 4 bits, else ``int8``.

    Both are moved so that the middle of their range is the format's own zero point, which symmetric quantisation uses.

    Args:
        module: Whose they are.
        bits: Of a number, up to 8.
        numbers: ``[O, E]``, columns sorted by group.
        scales: ``[O, G]``.
        zeros: Zero points, ``[O, G]``, or ``None`` for the middle.
        groups: Of columns.
    """
    form = WeightFormat.INT4 if bits <= 4 and numbers.shape[1] % 2 == 0 else WeightFormat.INT8
    own = SCALED[form]
    by = own - (1 << (bits - 1))
    if zeros is not None:
        zeros = zeros.astype(np.int16) + by
        zeros = None if (zeros == own).all() else zeros
    if form is WeightFormat.INT4:
        moved = numbers + np.uint8(by) if by else numbers
        data = moved[:, ::2] | moved[:, 1::2] << 4
    else:
        data = (numbers.astype(np.int16) + by).astype(np.int8)
    return scaled(module, form, data, numbers.shape[1], scales, zeros, groups)
