"""A step's integers as the kernels read them, laid out once and used by every layer.

Knows nothing of heads or values.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagellm_protocol.backend import AttentionBatch

from .pool import NativeKV
from .structs import Step


class NativePlan:
    """Who attends to what in one step.

    Attributes:
        cache: The pool it is a step over.
        struct: What the kernels are given; ``ids``, ``positions`` and what is read are the caller's to set.
        tokens: New tokens of the step.
    """

    def __init__(self, cache: NativeKV, batch: AttentionBatch) -> None:
        self.cache = cache
        query_lens = np.asarray(batch.query_lens, dtype=np.int32)
        context_lens = np.asarray(batch.context_lens, dtype=np.int32)
        tables = _rectangles(batch.block_tables)
        pointers = (ctypes.c_void_p * len(tables))(*(table.ctypes.data for table in tables))
        self.tokens = int(query_lens.sum())
        self._query_lens, self._context_lens = query_lens, context_lens
        self._kept = (tables, pointers)  # the struct points to them
        self.struct = Step(
            self.tokens,
            len(query_lens),
            cache.block_size,
            cache.kind,
            None,
            None,
            query_lens.ctypes.data,
            context_lens.ctypes.data,
            ctypes.addressof(pointers),
            tables[0].shape[1],
            0,
            cache.address,
            cache.block_bytes,
            cache.layer_offsets.ctypes.data,
            None,
        )

    @cached_property
    def positions(self) -> NDArray[np.int32]:
        """Of each token, where it stands in its sequence: ``[T]``."""
        lens, ends = self._query_lens, self._context_lens
        before = np.repeat(ends - np.cumsum(lens), lens)
        return (before + np.arange(self.tokens)).astype(np.int32)


def _rectangles(groups: Sequence[Any]) -> list[NDArray[np.int32]]:
    """Tables of every group, each ``[S, M]`` with one M; what follows a sequence's own blocks is never read."""
    if all(isinstance(tables, np.ndarray) and tables.shape == groups[0].shape for tables in groups):
        return [np.ascontiguousarray(tables, dtype=np.int32) for tables in groups]
    width = max((len(table) for tables in groups for table in tables), default=0)
    padded = [np.zeros((len(tables), width), dtype=np.int32) for tables in groups]
    for rows, tables in zip(padded, groups, strict=True):
        for row, table in zip(rows, tables, strict=True):
            row[: len(table)] = table
    return padded
