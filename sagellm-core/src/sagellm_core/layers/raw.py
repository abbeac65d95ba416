"""Raw weights rearranged on the host before they are packed: rows reordered, matrices transposed, vectors shifted.

What families store differently is made alike here, so that layers need not know. Block formats stay as they are: a
row is a whole number of blocks and moves whole. Knows nothing of modules or devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sagellm_protocol.backend import BLOCK_ELEMENTS, RawWeight, WeightFormat
from sagellm_protocol.errors import ErrorCode, SageLLMError

_ELEMENTS: Mapping[str, str] = {
    WeightFormat.F32.value: "<f4",
    WeightFormat.F16.value: "<f2",
    WeightFormat.BF16.value: "<u2",
}
"""Formats of one number an element, and how NumPy holds it; BF16 as its bits."""


def reorder_rows(raw: RawWeight, order: Sequence[int]) -> RawWeight:
    """The same rows (elements of a vector), the ``i``-th being what row ``order[i]`` was.

    Args:
        raw: ``[O, E]`` or ``[O]``, in any format of the protocol.
        order: O row numbers.
    """
    elements, size = BLOCK_ELEMENTS[WeightFormat(raw.format)]
    row = raw.shape[1] // elements * size if len(raw.shape) == 2 else size
    rows = np.frombuffer(memoryview(raw.data), dtype=np.uint8).reshape(raw.shape[0], row)
    # Of what lies beside, scales and zero points have a row each; the order of columns is the same for all rows.
    beside = {name: reorder_rows(extra, order) if name != "columns" else extra for name, extra in raw.extra.items()}
    return replace(raw, data=rows[np.asarray(order)].data, extra=beside)


def transpose(raw: RawWeight) -> RawWeight:
    """``[E, O]`` to ``[O, E]``.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for a block format, whose blocks run along rows.
    """
    matrix = _plain(raw, "be transposed").reshape(raw.shape)
    return replace(raw, shape=raw.shape[::-1], data=np.ascontiguousarray(matrix.T).data)


def unstack(raw: RawWeight) -> list[RawWeight]:
    """The parts of ``[X, ...]`` along its first axis, in any format; views of the same bytes."""
    data = memoryview(raw.data).cast("B")
    size = len(data) // raw.shape[0]
    return [
        replace(raw, name=f"{raw.name}[{part}]", shape=raw.shape[1:], data=data[part * size : (part + 1) * size])
        for part in range(raw.shape[0])
    ]


def mxfp4(blocks: RawWeight, scales: RawWeight) -> RawWeight:
    """A matrix in GGUF's MXFP4 blocks, out of blocks and scales kept apart.

    Args:
        blocks: ``[O, E / 32, 16]`` bytes, in each two neighbouring elements, the first in its low half.
        scales: ``[O, E / 32]`` exponents.
    """
    rows, count, _ = blocks.shape
    pairs = np.frombuffer(memoryview(blocks.data), dtype=np.uint8).reshape(rows, count, 16)
    codes = np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(rows, count, 32)
    whole = np.empty((rows, count, 17), dtype=np.uint8)
    whole[..., 0] = np.frombuffer(memoryview(scales.data), dtype=np.uint8).reshape(rows, count)
    whole[..., 1:] = codes[..., :16] | codes[..., 16:] << 4
    return RawWeight(blocks.name, WeightFormat.MXFP4.value, (rows, 32 * count), whole.data)


def shift(raw: RawWeight, by: float) -> RawWeight:
    """``raw + by``, added in float32 and left in it.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for a block format.
    """
    return _in_float32(raw, _numbers(raw, "be added to") + np.float32(by))


def scale(raw: RawWeight, by: float) -> RawWeight:
    """``raw * by``, multiplied in float32 and left in it; never a view of the same bytes.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for a block format.
    """
    return _in_float32(raw, _numbers(raw, "be scaled") * np.float32(by))


def _numbers(raw: RawWeight, what: str) -> NDArray[np.float32]:
    values = _plain(raw, what)
    if raw.format == WeightFormat.BF16.value:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _in_float32(raw: RawWeight, values: NDArray[np.float32]) -> RawWeight:
    return replace(raw, format=WeightFormat.F32.value, data=values.data)


def by_group(num_kv_heads: int, queries: int, head_dim: int) -> list[int]:
    """The order that turns a fused projection stored group by group into all queries, all keys, all values.

    A group is the queries that share a key, that key, and its value: Falcon's layout, and GPT-NeoX's with one query a
    group.

    Args:
        num_kv_heads: Groups, Hkv.
        queries: Queries of each, Hq / Hkv.
        head_dim: Rows of a head, D.
    """
    rows = np.arange(num_kv_heads * (queries + 2) * head_dim).reshape(num_kv_heads, queries + 2, head_dim)
    parts = (rows[:, :queries], rows[:, queries], rows[:, queries + 1])
    return [int(row) for part in parts for row in part.reshape(-1)]


def _plain(raw: RawWeight, what: str) -> NDArray[np.generic]:
    dtype = _ELEMENTS.get(raw.format)
    if dtype is None:
        raise SageLLMError(
            ErrorCode.UNSUPPORTED,
            f"tensor {raw.name!r} is stored as {raw.format}, in which it cannot {what} without rounding it anew;"
            f" use a checkpoint that has it as {', '.join(_ELEMENTS)}",
            "model",
        )
    values: NDArray[np.generic] = np.frombuffer(memoryview(raw.data), dtype=dtype)
    return values
