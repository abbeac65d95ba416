"""Weights of one format rewritten in the blocks of another that native kernels multiply, where no integer changes.

Knows nothing of kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from sagellm_backend.dtypes import byte_array
from sagellm_protocol.backend import BLOCK_ELEMENTS, SCALED, RawWeight, WeightFormat

from . import expand

_TWICE = (0, 1, 2, 3, 4, 6, 8, 12)
"""Magnitudes of MXFP4's codes, doubled: whole numbers."""
_Q5_OF_CODE: NDArray[np.uint8] = np.array([16 + sign * value for sign in (1, -1) for value in _TWICE], dtype=np.uint8)
"""Q5_0's quant of each code: it stores whole numbers from -16 to 15, plus 16."""
_SMALLEST, _LARGEST = 104, 143
"""MXFP4 exponents whose halved power of two, 2^(e - 128), is a float16."""
_NEUTRAL = 128


def mxfp4_as_q5_0(raw: RawWeight) -> RawWeight | None:
    """An MXFP4 weight in Q5_0 blocks of the same values, or ``None`` where float16 cannot hold a block's scale.

    An MXFP4 element is a whole number from -12 to 12 times half the block's power of two; Q5_0 has both. It takes 22
    bytes a block instead of 17, and BF16, the other exact form, 64.
    """
    blocks = byte_array(raw.data).reshape(-1, 17)
    packed = blocks[:, 1:]
    codes = np.concatenate([packed & 15, packed >> 4], axis=1)  # [n, 32]
    exponents = blocks[:, 0].astype(np.int32)
    exponents = np.where((codes & 7).any(axis=1), exponents, _NEUTRAL)  # of zeros alone, any scale will do
    if exponents.size and (exponents.min() < _SMALLEST or exponents.max() > _LARGEST):
        return None
    quants = _Q5_OF_CODE[codes]
    out = np.empty((len(blocks), 22), dtype=np.uint8)
    scales = np.ldexp(np.float32(1), exponents - _NEUTRAL).astype("<f2")
    out[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    out[:, 2:6] = np.packbits(quants >> 4, axis=1, bitorder="little")
    out[:, 6:] = (quants[:, :16] & 15) | (quants[:, 16:] & 15) << 4
    return RawWeight(raw.name, WeightFormat.Q5_0.value, raw.shape, out.data)


_CLOSE = 2.0**-11
"""Half of float16's last place, relative to the number: how far its rounding takes a scale within its normal range."""
_ROWS_AT_ONCE = 256


def scaled_as_blocks(raw: RawWeight) -> RawWeight | None:
    """Scaled integers in blocks of the same integers and scales, columns in their stored order; else ``None``.

    Integers from 0 to 15 about 8 are Q4_0's. About any other zero point they are whole numbers from -16 to 15, which
    Q5_0 holds (Q4_1 would take half a bit less, and round the product of scale and zero point). Those of 8 bits are
    Q8_0's.

    Nothing is rounded but scales that float16 does not hold, and those by 2^-11 of themselves at most: float32's, and
    BF16's below 2^-17. What groups are no whole blocks, what scales are smaller or larger than float16's normal
    numbers, and what integers about their zero point are beyond those ranges, no blocks hold.
    """
    kind = WeightFormat(raw.format)
    rows, width = raw.shape
    scales, zeros = (_grid(raw, name) for name in ("scales", "zeros"))
    assert scales is not None, "format_of refuses a weight without"
    with np.errstate(over="ignore"):
        halves = scales.astype("<f2")
    if width // scales.shape[1] % 32 or not (np.abs(halves - scales) <= _CLOSE * np.abs(scales)).all():
        return None
    if zeros is None:
        zeros = np.full(scales.shape, SCALED[kind], np.float32)
    if kind is WeightFormat.INT4:
        target = WeightFormat.Q4_0 if (zeros == SCALED[kind]).all() else WeightFormat.Q5_0
    else:
        target = WeightFormat.Q8_0
    low, high = _RANGE[target]
    size = BLOCK_ELEMENTS[target][1]
    made = np.empty((rows, width // 32, size), np.uint8)
    table = byte_array(raw.data).reshape(rows, -1)
    repeats = width // scales.shape[1] // 32

    def work(start: int) -> bool:
        part = slice(start, start + _ROWS_AT_ONCE)
        numbers = _INTEGERS[kind](table[part]).reshape(-1, width // 32, 32).astype(np.int16)
        about = np.repeat(zeros[part], repeats, axis=1)[..., None]  # [r, blocks, 1]
        shifted = numbers - about.astype(np.int16)
        if (about % 1).any() or shifted.min() < low or shifted.max() > high:
            return False
        blocks = made[part]
        blocks[..., :2] = np.repeat(halves[part], repeats, axis=1)[..., None].view(np.uint8)
        _WRITERS[target](shifted, blocks)
        return True

    with ThreadPoolExecutor(torch.get_num_threads(), "repack") as threads:
        if not all(threads.map(work, range(0, rows, _ROWS_AT_ONCE))):
            return None
    return RawWeight(raw.name, target.value, raw.shape, made.data)


def has_f8_blocks(raw: RawWeight) -> bool:
    """Whether a weight of 8-bit floats is one of :func:`f8_blocks`.

    Its groups must be whole blocks, its columns in order, and its codes those of numbers.
    """
    _, groups = raw.extra["scales"].shape
    if raw.shape[1] // groups % 32 or "zeros" in raw.extra or "columns" in raw.extra:
        return False
    return not (byte_array(raw.data) & 127 == 127).any()


def f8_blocks(raw: RawWeight) -> NDArray[np.uint8]:
    """A weight of 8-bit floats in blocks of 32, each a float32 scale and the floats: ``[O, E / 32, 36]``."""
    rows, width = raw.shape
    scales = _grid(raw, "scales")
    assert scales is not None, "format_of refuses a weight without"
    made = np.empty((rows, width // 32, 36), np.uint8)
    made[..., :4] = np.repeat(scales, width // scales.shape[1] // 32, axis=1).astype("<f4")[..., None].view(np.uint8)
    made[..., 4:] = byte_array(raw.data).reshape(rows, -1, 32)
    return made


def _grid(raw: RawWeight, name: str) -> NDArray[np.float32] | None:
    extra = raw.extra.get(name)
    return None if extra is None else expand(extra, WeightFormat(extra.format), torch.float32).numpy()


def _int4(packed: NDArray[np.uint8]) -> NDArray[np.generic]:
    """``[r, E / 2]`` to ``[r, E]``."""
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(len(packed), -1)


def _int8(packed: NDArray[np.uint8]) -> NDArray[np.generic]:
    return packed.view(np.int8)


def _write_q4_0(numbers: NDArray[np.int16], blocks: NDArray[np.uint8]) -> None:
    quants = (numbers + 8).astype(np.uint8)
    blocks[..., 2:] = quants[..., :16] | quants[..., 16:] << 4


def _write_q5_0(numbers: NDArray[np.int16], blocks: NDArray[np.uint8]) -> None:
    quants = (numbers + 16).astype(np.uint8)
    blocks[..., 2:6] = np.packbits(quants >> 4, axis=-1, bitorder="little")
    blocks[..., 6:] = (quants[..., :16] & 15) | (quants[..., 16:] & 15) << 4


def _write_q8_0(numbers: NDArray[np.int16], blocks: NDArray[np.uint8]) -> None:
    blocks[..., 2:] = numbers.astype(np.int8).view(np.uint8)


_INTEGERS: Mapping[WeightFormat, Callable[[NDArray[np.uint8]], NDArray[np.generic]]] = {
    WeightFormat.INT4: _int4,
    WeightFormat.INT8: _int8,
}
_RANGE: Mapping[WeightFormat, tuple[int, int]] = {
    WeightFormat.Q4_0: (-8, 7),
    WeightFormat.Q5_0: (-16, 15),
    WeightFormat.Q8_0: (-128, 127),
}
"""Whole numbers that an element may be of its block's scale."""
_WRITERS: Mapping[WeightFormat, Callable[[NDArray[np.int16], NDArray[np.uint8]], None]] = {
    WeightFormat.Q4_0: _write_q4_0,
    WeightFormat.Q5_0: _write_q5_0,
    WeightFormat.Q8_0: _write_q8_0,
}
"""Numbers ``[r, blocks, 32]`` into blocks ``[r, blocks, bytes]``, whose scales are there."""
