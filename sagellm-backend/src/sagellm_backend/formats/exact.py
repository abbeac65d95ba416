"""Blocks of one format rewritten in another that native kernels multiply, where not one value changes.

Knows nothing of kernels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sagellm_backend.dtypes import byte_array
from sagellm_protocol.backend import RawWeight, WeightFormat

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
