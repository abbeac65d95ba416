"""The key/value pool of the native kernels: block by block, in each every layer, in each of those every head.

A block's keys and values lie together in tiles of 16 tokens, turned as the kernels multiply them
(``native/kernels.h``), so that a sequence is read in whole pieces and large pages pay. Knows nothing of sequences or
which blocks are in use.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from typing_extensions import Buffer

from sagellm_backend.paged import check_size, group_specs, too_large
from sagellm_backend.pages import untouched
from sagellm_protocol.backend import KVSpec
from sagellm_protocol.devices import DType

from .library import Library
from .structs import ABI

TYPES = {DType.FLOAT32: 0, DType.BFLOAT16: 1, DType.INT8: 2}
"""Number of each type in the C interface."""
_TILE = 16
_LARGEST_HEAD = 256
LARGEST_BLOCK = 128
"""Most tokens of a block."""


def fits(specs: Sequence[KVSpec]) -> bool:
    """Whether the kernels attend over such heads."""
    return all(
        0 < size <= _LARGEST_HEAD and size % 16 == 0 for spec in specs for size in (spec.head_dim, spec.value_dim)
    )


class NativeKV:
    """Blocks of every layer in one lazily touched allocation.

    Attributes:
        kind: Number of its type in the C interface.
        address: Where block 0 begins.
        block_bytes: Bytes of a block in all layers.
        layer_offsets: Where each layer begins in a block, ``[L]`` int64.
        group_specs: The distinct specs, in order of first appearance.
        groups: Of each layer, the place of its spec among those.
    """

    batch_invariant = True  # splits follow positions, not steps

    def __init__(
        self, library: Library, specs: Sequence[KVSpec], num_blocks: int, block_size: int, dtype: DType
    ) -> None:
        self.specs = tuple(specs)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.kind = TYPES[dtype]
        self.group_specs, self.groups = group_specs(specs)
        tiles = -(-block_size // _TILE)
        sizes = [
            spec.num_kv_heads * tiles * library.handle.sage_tile_bytes(self.kind, spec.head_dim, spec.value_dim)
            for spec in self.specs
        ]
        self.layer_offsets = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
        self.block_bytes = sum(sizes)
        self.nbytes = self.block_bytes * num_blocks
        try:
            self._blocks = untouched(self.nbytes, huge=True).reshape(num_blocks, self.block_bytes)
        except MemoryError:
            raise too_large(num_blocks, self.nbytes) from None
        self.address = self._blocks.ctypes.data

    @property
    def layout(self) -> str:
        """The kernels' own: another interface may turn its tiles otherwise."""
        return f"tiles-{ABI}"

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks ``source → target`` in every layer; every source is read before any target is written."""
        if pairs:
            sources, targets = zip(*pairs, strict=True)
            self._blocks[list(targets)] = self._blocks[list(sources)]

    def export(self, blocks: Sequence[int]) -> bytes:
        """Contents of blocks, one after another as they lie."""
        return self._blocks[list(blocks)].tobytes()

    def load(self, blocks: Sequence[int], data: Buffer) -> None:
        """Write what :meth:`export` of the same layout made.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` when ``data`` is not of the size that these blocks take.
        """
        check_size(len(blocks), self.block_bytes * len(blocks), memoryview(data).nbytes)
        self._blocks[list(blocks)] = np.frombuffer(memoryview(data), dtype=np.uint8).reshape(
            len(blocks), self.block_bytes
        )
