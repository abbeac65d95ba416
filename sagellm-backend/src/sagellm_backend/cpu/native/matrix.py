"""Packed matrices: a checkpoint's blocks interleaved once, without loss, and multiplied as they are.

Block formats stay quantised; activations are quantised to 8 bits by blocks of 32 as they meet them. Anything else
becomes BF16. Knows nothing of layers.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sagellm_backend import formats
from sagellm_backend.pages import untouched
from sagellm_protocol.backend import RawWeight, WeightFormat
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .library import Library
from .structs import Matrix

KINDS: Mapping[WeightFormat, int] = {WeightFormat.Q4_0: 0, WeightFormat.Q4_1: 1, WeightFormat.Q8_0: 2}
"""Formats that stay quantised, with their number in the C interface."""
BF16 = 3
_FROM_F32 = 4
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
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
        struct: What the kernels are given.
        nbytes: Bytes of the matrix and its bias.
    """

    dtype = torch.bfloat16

    def __init__(
        self,
        library: Library,
        store: MatrixStore,
        parts: Sequence[tuple[RawWeight, WeightFormat]],
        bias: torch.Tensor | None,
    ) -> None:
        rows, cols = sum(math.prod(raw.shape[:-1]) for raw, _ in parts), parts[0][0].shape[-1]
        self.shape = (rows, cols)
        stored = {kind for _, kind in parts}
        kind = KINDS.get(next(iter(stored)), BF16) if len(stored) == 1 else BF16
        self._library = library
        self._data = store.take(library.handle.sage_matrix_bytes(kind, rows, cols))
        self._bias = None if bias is None else bias.float().contiguous()
        bias_at = None if self._bias is None else self._bias.data_ptr()
        self.struct = Matrix(kind, rows, cols, 0, self._data.ctypes.data, bias_at)
        self.nbytes = self._data.nbytes + (0 if self._bias is None else self._bias.nbytes)
        first = 0
        for raw, stored_as in parts:
            if kind == BF16:
                for offset, piece in formats.decode_chunks(raw, stored_as):
                    self._pack(_FROM_F32, piece.contiguous().data_ptr(), first + offset, piece.shape[0])
            else:
                table = np.ascontiguousarray(formats.raw_rows(raw))
                self._pack(kind, table.ctypes.data, first, table.shape[0])
            first += math.prod(raw.shape[:-1])

    @property
    def quantized(self) -> bool:
        """Whether it is kept in blocks."""
        return bool(self.struct.kind != BF16)

    def linear(self, x: torch.Tensor, level: int | None = None) -> torch.Tensor:
        """``x @ matrix.T + bias``: ``[T, E]`` float32 or BF16 to ``[T, O]`` of the same type."""
        kind = _TYPES.get(x.dtype)
        if kind is None:
            return self.linear(x.float(), level).to(x.dtype)
        x = x.contiguous()
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

    def _pack(self, source: int, rows: int, first: int, count: int) -> None:
        status = self._library.handle.sage_pack(
            ctypes.byref(self.struct), ctypes.c_void_p(self.struct.data), source, ctypes.c_void_p(rows), first, count
        )
        assert status == 0, "kind and source were chosen to fit"


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
