"""Weight formats: bytes of rows in, float32 out, one function a format.

The table is the seam: a format is a function over blocks and a line here. Knows nothing of devices, of how a weight is
used or of which backend keeps it quantised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from sagellm_backend.dtypes import byte_array
from sagellm_protocol.backend import BLOCK_ELEMENTS, SCALED, RawWeight, WeightFormat
from sagellm_protocol.errors import ErrorCode, SageLLMError

from . import blocks32, blocks256, plain, scaled

Decoder = Callable[[torch.Tensor], torch.Tensor]

DECODERS: Mapping[WeightFormat, Decoder] = {
    WeightFormat.F32: plain.f32,
    WeightFormat.F16: plain.f16,
    WeightFormat.BF16: plain.bf16,
    WeightFormat.Q4_0: blocks32.q4_0,
    WeightFormat.Q4_1: blocks32.q4_1,
    WeightFormat.Q5_0: blocks32.q5_0,
    WeightFormat.Q5_1: blocks32.q5_1,
    WeightFormat.Q8_0: blocks32.q8_0,
    WeightFormat.Q2_K: blocks256.q2_k,
    WeightFormat.Q3_K: blocks256.q3_k,
    WeightFormat.Q4_K: blocks256.q4_k,
    WeightFormat.Q5_K: blocks256.q5_k,
    WeightFormat.Q6_K: blocks256.q6_k,
    WeightFormat.MXFP4: blocks32.mxfp4,
    WeightFormat.INT4: scaled.int4,
    WeightFormat.INT8: scaled.int8,
    WeightFormat.F8_E4M3: scaled.f8_e4m3,
}
"""Blocks ``[n, bytes]`` uint8 to elements ``[n, elements]`` float32; of scaled formats, not yet scaled."""

_CHUNK_ELEMENTS = 1 << 22
"""Elements decoded at a time, so that expanding a large matrix needs little memory besides its result."""


def format_of(raw: RawWeight, backend: str) -> WeightFormat:
    """The format of ``raw``, checked against its shape and the bytes it holds.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for an unknown format, naming those that are known; ``INVALID_REQUEST`` when
            shape and bytes do not fit.
    """
    try:
        found = WeightFormat(raw.format)
    except ValueError:
        known = ", ".join(kind.value for kind in DECODERS)
        raise SageLLMError(
            ErrorCode.UNSUPPORTED,
            f"{raw.name} is stored as {raw.format!r}, which backend {backend!r} does not read; it reads {known}",
        ) from None
    elements, size = BLOCK_ELEMENTS[found]
    width = raw.shape[-1] if raw.shape else 1
    expected = math.prod(raw.shape) // elements * size
    held = memoryview(raw.data).nbytes
    if width % elements:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"{raw.name} has rows of {width} elements, which is no whole number of {found.value} blocks of {elements}",
        )
    if held != expected:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"{raw.name} of shape {list(raw.shape)} as {found.value} takes {expected} bytes, but {held} are there;"
            " the file may be cut off",
        )
    if found in SCALED:
        scaled.check(raw)
    return found


def decode(rows: torch.Tensor, kind: WeightFormat) -> torch.Tensor:
    """Expand rows of blocks: ``[R, bytes]`` uint8 to ``[R, elements]`` float32; of scaled formats, not yet scaled."""
    elements, size = BLOCK_ELEMENTS[kind]
    return DECODERS[kind](rows.reshape(-1, size)).reshape(rows.shape[0], rows.shape[1] // size * elements)


def raw_rows(raw: RawWeight) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of ``raw`` as ``[rows, bytes]`` uint8, a view of the file where it is mapped."""
    rows = math.prod(raw.shape[:-1])
    data = byte_array(raw.data)
    return data.reshape(rows, data.size // rows if rows else 0)


def decode_rows(raw: RawWeight, kind: WeightFormat, rows: slice | np.ndarray[Any, np.dtype[np.int64]]) -> torch.Tensor:
    """Expand some rows of a weight: ``[r, width]`` float32."""
    # The copy makes read-only pages of a mapped file writable for torch; chosen rows are one already.
    table = raw_rows(raw)[rows]
    decoded = decode(torch.from_numpy(table.copy() if isinstance(rows, slice) else table), kind)
    if kind not in SCALED:
        return decoded
    scales, zeros = (_beside(raw, name, rows) for name in ("scales", "zeros"))
    assert scales is not None, "format_of refuses a weight without"
    return scaled.scale(decoded, kind, scales, zeros, raw)


def _beside(raw: RawWeight, name: str, rows: slice | np.ndarray[Any, np.dtype[np.int64]]) -> torch.Tensor | None:
    extra = raw.extra.get(name)
    return None if extra is None else decode_rows(extra, WeightFormat(extra.format), rows)


def decode_chunks(raw: RawWeight, kind: WeightFormat) -> Iterator[tuple[int, torch.Tensor]]:
    """Expand a weight piece by piece: the first row of each piece, and the piece as ``[r, width]`` float32."""
    rows = math.prod(raw.shape[:-1])
    step = max(1, _CHUNK_ELEMENTS // max(1, raw.shape[-1] if raw.shape else 1))
    for start in range(0, rows, step):
        yield start, decode_rows(raw, kind, slice(start, start + step))


def expand(raw: RawWeight, kind: WeightFormat, dtype: torch.dtype) -> torch.Tensor:
    """The whole weight in its logical shape and ``dtype``."""
    whole = torch.empty(raw.shape, dtype=dtype)
    matrix = whole.view(math.prod(raw.shape[:-1]), -1) if whole.numel() else whole
    for start, piece in decode_chunks(raw, kind):
        matrix[start : start + piece.shape[0]] = piece
    return whole
