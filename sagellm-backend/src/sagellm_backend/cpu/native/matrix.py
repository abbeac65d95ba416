"""Packed matrices: a checkpoint's blocks interleaved once, without loss, and multiplied as they are.

Block formats stay quantised, each part of a matrix in its own; activations are quantised to 8 bits by blocks of 32 as
they meet them. 8-bit floats stay so, and meet activations in BF16. Anything else becomes BF16. Knows nothing of layers.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sagellm_backend import formats
from sagellm_backend.formats.exact import f8_blocks, has_f8_blocks
from sagellm_backend.pages import untouched
from sagellm_protocol.backend import RawWeight, WeightFormat
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .library import Library
from .structs import Matrix, Segment

KINDS: Mapping[WeightFormat, int] = {
    WeightFormat.Q4_0: 1,
    WeightFormat.Q4_1: 2,
    WeightFormat.Q5_0: 3,
    WeightFormat.Q5_1: 4,
    WeightFormat.Q8_0: 5,
    WeightFormat.Q2_K: 6,
    WeightFormat.Q3_K: 7,
    WeightFormat.Q4_K: 8,
    WeightFormat.Q5_K: 9,
    WeightFormat.Q6_K: 10,
}
"""Formats that stay quantised, with their number in the C interface."""
BF16, F8 = 0, 11
_FLOATS = frozenset({BF16, F8})
"""Kinds that meet activations in BF16."""
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_GROUP = 16
"""Rows that are interleaved: a format may give way to another only between groups."""
_CHUNK = 64 << 20


class MatrixStore:
    """Memory for matrices, in large pieces that the kernel may back with huge pages.

    A matrix is read from end to end each step; with small pages address translation would cost a third of that.
    """

    def __init__(self) -> None:
        self._chunk: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)
        self._used = 0

    def take(self, size: int) -> NDArray[np.uint8]:
        """``size`` bytes of zeros, aligned to 64."""
        if self._used + size > self._chunk.size:
            self._chunk = untouched(max(_CHUNK, size), huge=True)
            self._used = 0
        piece = self._chunk[self._used : self._used + size]
        self._used += -(-size // 64) * 64
        return piece


class NativeMatrix:
    """A matrix in the kernels' layout, multiplied or looked up.

    Attributes:
        shape: ``(O, E)``.
        dtype: What activations are taken as.
        columns: Which column each stored one is, where they are in another order.
        struct: What the kernels are given.
        nbytes: Bytes of the matrix and its bias.
    """

    dtype = torch.bfloat16
    batch_invariant = True

    def __init__(
        self,
        library: Library,
        store: MatrixStore,
        parts: Sequence[tuple[RawWeight, WeightFormat]],
        bias: torch.Tensor | None,
        columns: torch.Tensor | None = None,
    ) -> None:
        """Lay a matrix out.

        Args:
            library: The kernels.
            store: Where it is kept.
            parts: Matrices of equal E with their formats, stacked along rows.
            bias: ``[O]``.
            columns: Which column of the matrix each stored one is, ``[E]``, where they are in another order: what it
                multiplies is brought into that order first.
        """
        self.columns = columns
        cols = parts[0][0].shape[-1]
        segments = _segments(parts)
        self._library = library
        self._packed: list[NDArray[np.uint8]] = []
        self._segments = (Segment * len(segments))()
        for place, (kind, members) in enumerate(segments):
            rows = sum(map(_rows, members))
            data = store.take(library.handle.sage_packed_bytes(kind, rows, cols))
            self._packed.append(data)
            self._segments[place] = Segment(kind, rows, data.ctypes.data)
            self._pack(self._segments[place], cols, members)
        rows = sum(segment.rows for segment in self._segments)
        self.shape = (rows, cols)
        self._bias = None if bias is None else bias.float().contiguous()
        self.struct = Matrix(
            BF16 if self._segments[0].kind in _FLOATS else self._segments[0].kind,
            rows,
            cols,
            len(self._segments),
            ctypes.addressof(self._segments),
            None if self._bias is None else self._bias.data_ptr(),
        )
        self.nbytes = sum(data.nbytes for data in self._packed) + (0 if self._bias is None else self._bias.nbytes)

    @property
    def quantized(self) -> bool:
        """Whether it is kept in blocks that activations are quantised for."""
        return bool(self.struct.kind != BF16)

    def linear(self, x: torch.Tensor, level: int | None = None) -> torch.Tensor:
        """``x @ matrix.T + bias``: ``[T, E]`` float32 or BF16 to ``[T, O]`` of the same type."""
        kind = _TYPES.get(x.dtype)
        if kind is None:
            return self.linear(x.float(), level).to(x.dtype)
        x = x.contiguous() if self.columns is None else x.index_select(1, self.columns)
        out = torch.empty(x.shape[0], self.shape[0], dtype=x.dtype)
        status = self._library.handle.sage_linear(
            self._library.level if level is None else level,
            torch.get_num_threads(),
            ctypes.byref(self.struct),
            kind,
            ctypes.c_void_p(x.data_ptr()),
            x.shape[0],
            kind,
            ctypes.c_void_p(out.data_ptr()),
        )
        check(status, self.shape[0])
        return out

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows of a table: ids ``[T]`` to ``[T, E]``."""
        wanted = ids.to(torch.int32).contiguous()
        if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < self.shape[0]:
            check(_UNKNOWN_ID, self.shape[0])
        out = torch.empty(wanted.shape[0], self.shape[1])
        self._library.handle.sage_embedding(
            ctypes.byref(self.struct),
            ctypes.c_void_p(wanted.data_ptr()),
            wanted.shape[0],
            ctypes.c_void_p(out.data_ptr()),
        )
        return out.to(dtype)

    def _pack(self, segment: Segment, cols: int, parts: Sequence[_Part]) -> None:
        first = 0
        for raw, stored in parts:
            if segment.kind == F8:
                blocks = f8_blocks(raw)
                self._pack_rows(segment, cols, blocks.ctypes.data, first, blocks.shape[0])
            elif segment.kind != BF16:
                table = np.ascontiguousarray(formats.raw_rows(raw))
                self._pack_rows(segment, cols, table.ctypes.data, first, table.shape[0])
            else:
                for offset, piece in formats.decode_chunks(raw, stored):
                    self._pack_rows(segment, cols, piece.contiguous().data_ptr(), first + offset, piece.shape[0])
            first += _rows((raw, stored))

    def _pack_rows(self, segment: Segment, cols: int, rows: int, first: int, count: int) -> None:
        self._library.handle.sage_pack(
            segment.kind,
            cols,
            ctypes.c_void_p(segment.data),
            _TYPES[torch.float32],
            ctypes.c_void_p(rows),
            first,
            count,
        )


_Part = tuple[RawWeight, WeightFormat]


def _rows(part: _Part) -> int:
    return math.prod(part[0].shape[:-1])


def _segments(parts: Sequence[_Part]) -> list[tuple[int, list[_Part]]]:
    """Runs of parts that are kept as one kind, each but the last of whole groups; one of BF16 where that cannot be."""
    runs: list[tuple[int, list[_Part]]] = []
    for part in parts:
        kind = _kind(part)
        if runs and runs[-1][0] == kind:
            runs[-1][1].append(part)
        else:
            runs.append((kind, [part]))
    whole_groups = all(sum(map(_rows, run)) % _GROUP == 0 for _, run in runs[:-1])
    alike = len({kind in _FLOATS for kind, _ in runs}) == 1
    return runs if whole_groups and alike else [(BF16, list(parts))]


def _kind(part: _Part) -> int:
    raw, stored = part
    if stored is WeightFormat.F8_E4M3:
        return F8 if has_f8_blocks(raw) else BF16
    return KINDS.get(stored, BF16)


_NO_MEMORY, _UNKNOWN_ID = -1, -2


def check(status: int, vocabulary: int = 0) -> None:
    """Raise what a kernel's status says.

    Raises:
        SageLLMError: ``UNAVAILABLE`` when memory is short, ``INVALID_REQUEST`` for an id the table does not have.
    """
    if status == _NO_MEMORY:
        raise SageLLMError(ErrorCode.UNAVAILABLE, "no memory for a step's activations; compute fewer tokens a step")
    if status == _UNKNOWN_ID:
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"a token id is not among the {vocabulary} of the table")
