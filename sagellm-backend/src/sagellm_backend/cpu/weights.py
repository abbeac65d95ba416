"""Weights as this backend lays them out: packed for oneDNN to multiply, tables looked up where their file has them.

Knows nothing of what a weight is for beyond its use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sagellm_backend import formats
from sagellm_backend.dtypes import TORCH
from sagellm_protocol.backend import RawWeight, WeightFormat
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

_ROWS_HINT = 16
"""Rows that oneDNN lays a weight out for. Measured from 1 to 1,024 rows: 16 is within noise of the best at each."""


class Table:
    """Rows looked up by id, decoded on the way out of the bytes their file holds.

    A quantised table is never expanded, and a mapped file's pages are shared with whoever else maps it.
    """

    def __init__(self, parts: Sequence[tuple[RawWeight, WeightFormat]]) -> None:
        self._parts = list(parts)
        self._starts = [0]
        for raw, _ in self._parts:
            self._starts.append(self._starts[-1] + raw.shape[0])
        self.nbytes = sum(_bytes(raw) for raw, _ in self._parts)

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``[T]`` to ``[T, E]``."""
        if len(self._parts) == 1:
            return self._decode(0, ids, dtype)
        pieces = torch.empty(ids.shape[0], 0, dtype=dtype)
        for part in range(len(self._parts)):
            inside = (ids >= self._starts[part]) & (ids < self._starts[part + 1])
            decoded = self._decode(part, ids[inside] - self._starts[part], dtype)
            if pieces.shape[1] == 0:
                pieces = torch.empty(ids.shape[0], decoded.shape[1], dtype=dtype)
            pieces[inside] = decoded
        return pieces

    def _decode(self, part: int, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        raw, kind = self._parts[part]
        return formats.decode_rows(raw, kind, ids.numpy()).to(dtype)


def _bytes(raw: RawWeight) -> int:
    return memoryview(raw.data).nbytes + sum(map(_bytes, raw.extra.values()))


class CpuWeight:
    """A packed matrix, a table, or both of one tied weight.

    Attributes:
        dtype: Type that :meth:`linear` computes in.
    """

    batch_invariant = False  # oneDNN's products are of another kernel for another number of rows

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        packed: torch.Tensor | None,
        bias: torch.Tensor | None,
        table: Table | None,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._packed = packed
        self._bias = bias
        self._table = table
        self.nbytes = (
            (torch.ops.mkldnn._nbytes(packed) if packed is not None else 0)
            + (bias.nbytes if bias is not None else 0)
            + (table.nbytes if table is not None else 0)
        )

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """``[T, E]`` of this weight's dtype to ``[T, O]``."""
        product: torch.Tensor = _linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return product

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``[T]`` to ``[T, E]`` of ``dtype``.

        Raises:
            SageLLMError: ``INTERNAL`` when it was packed without its table.
        """
        if self._table is None:
            raise SageLLMError(
                ErrorCode.INTERNAL, "this weight was packed for multiplication only; pack it with use=embedding"
            )
        return self._table.rows(ids, dtype)


_linear_pointwise = torch.ops.mkldnn._linear_pointwise.default


def pack(
    parts: Sequence[tuple[RawWeight, WeightFormat]],
    dtype: DType,
    bias: Sequence[torch.Tensor],
    *,
    multiplied: bool,
    looked_up: bool,
) -> CpuWeight:
    """Lay a weight out.

    Args:
        parts: Matrices of equal E with their formats, stacked along rows.
        dtype: Type it is multiplied in.
        bias: One vector a part, or nothing.
        multiplied: Whether :meth:`CpuWeight.linear` is wanted.
        looked_up: Whether its table is wanted.
    """
    kind = TORCH[dtype]
    shape = (sum(math.prod(raw.shape[:-1]) for raw, _ in parts), parts[0][0].shape[-1])
    packed = None
    if multiplied:
        matrix = torch.empty(shape, dtype=kind)
        start = 0
        for raw, stored in parts:
            for offset, piece in formats.decode_chunks(raw, stored):
                matrix[start + offset : start + offset + piece.shape[0]] = piece
            start += math.prod(raw.shape[:-1])
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix, _ROWS_HINT)
    return CpuWeight(shape, kind, packed, torch.cat(list(bias)) if bias else None, Table(parts) if looked_up else None)
