"""The paged key/value pool of torch backends: one row a token, keys then values of all its heads.

Knows nothing of attention, sequences or which blocks are in use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from typing_extensions import Buffer

from sagellm_protocol.backend import KVSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .dtypes import bytes_tensor


class PagedKV:
    """Blocks of every layer in one lazily touched allocation.

    Memory that was never written reads as zero: positions past a sequence's end hold finite numbers, so that a masked
    weight of zero times such a value is zero.

    Attributes:
        rows: Of each layer, ``[N * P, Hkv * D + Hkv * Dv]``.
        groups: Of each layer, its place among the distinct specs in order of first appearance.
    """

    def __init__(self, specs: Sequence[KVSpec], num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        self.specs = tuple(specs)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.group_specs = tuple(dict.fromkeys(self.specs))
        self.groups = tuple(self.group_specs.index(spec) for spec in self.specs)
        widths = [spec.num_kv_heads * (spec.head_dim + spec.value_dim) for spec in self.specs]
        tokens = num_blocks * block_size
        self.nbytes = tokens * sum(widths) * dtype.itemsize
        try:
            # calloc hands out untouched zero pages; torch.zeros would write them all.
            store = torch.from_numpy(np.zeros(self.nbytes, dtype=np.uint8)).view(dtype)
        except MemoryError:
            raise SageLLMError(
                ErrorCode.UNAVAILABLE,
                f"a key/value pool of {num_blocks} blocks takes {self.nbytes} bytes, more than can be reserved here;"
                " ask for fewer blocks",
            ) from None
        pieces = torch.split(store, [tokens * width for width in widths])
        self.rows = tuple(piece.view(tokens, width) for piece, width in zip(pieces, widths, strict=True))

    def blocks(self, layer: int) -> torch.Tensor:
        """A layer's rows by block, ``[N, P, width]``."""
        return self.rows[layer].view(self.num_blocks, self.block_size, -1)

    def keys(self, layer: int) -> torch.Tensor:
        """A layer's keys, a view ``[N * P, Hkv, D]``."""
        spec = self.specs[layer]
        return self.rows[layer][:, : spec.num_kv_heads * spec.head_dim].unflatten(1, (spec.num_kv_heads, spec.head_dim))

    def values(self, layer: int) -> torch.Tensor:
        """A layer's values, a view ``[N * P, Hkv, Dv]``."""
        spec = self.specs[layer]
        return self.rows[layer][:, spec.num_kv_heads * spec.head_dim :].unflatten(
            1, (spec.num_kv_heads, spec.value_dim)
        )

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks ``source → target`` in every layer; every source is read before any target is written."""
        if not pairs:
            return
        source = torch.tensor([pair[0] for pair in pairs])
        target = torch.tensor([pair[1] for pair in pairs])
        for layer in range(len(self.specs)):
            blocks = self.blocks(layer)
            blocks[target] = blocks[source]

    def export(self, blocks: Sequence[int]) -> bytes:
        """Contents of blocks: layer by layer, within a layer in the order given."""
        index = torch.tensor(blocks, dtype=torch.int64)
        return b"".join(
            self.blocks(layer)[index].view(torch.uint8).numpy().tobytes() for layer in range(len(self.specs))
        )

    def load(self, blocks: Sequence[int], data: Buffer) -> None:
        """Write what :meth:`export` of the same layout made.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` when ``data`` is not of the size that these blocks take.
        """
        expected = self.nbytes // self.num_blocks * len(blocks) if self.num_blocks else 0
        held = memoryview(data).nbytes
        if held != expected:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"{len(blocks)} blocks of this layout take {expected} bytes, but {held} were given; both ends must agree"
                " on layers, heads, block size and dtype",
            )
        index = torch.tensor(blocks, dtype=torch.int64)
        flat = bytes_tensor(data).view(self.dtype)
        sizes = [len(blocks) * self.block_size * rows.shape[1] for rows in self.rows]
        for layer, piece in enumerate(torch.split(flat, sizes)):
            self.blocks(layer)[index] = piece.view(len(blocks), self.block_size, -1)
