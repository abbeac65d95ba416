"""The paged key/value pool of torch backends: of each layer, key heads then value heads, each with one row a token.

Knows nothing of attention, sequences or which blocks are in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from typing_extensions import Buffer

from sagellm_protocol.backend import KVCache, KVSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .dtypes import bytes_tensor
from .pages import untouched


def group_specs(specs: Sequence[KVSpec]) -> tuple[tuple[KVSpec, ...], tuple[int, ...]]:
    """The distinct specs in order of first appearance, and of each layer the place of its own among them."""
    distinct = tuple(dict.fromkeys(specs))
    return distinct, tuple(distinct.index(spec) for spec in specs)


def too_large(num_blocks: int, nbytes: int) -> SageLLMError:
    """What to raise for a pool that the system does not give."""
    return SageLLMError(
        ErrorCode.UNAVAILABLE,
        f"a key/value pool of {num_blocks} blocks takes {nbytes} bytes, more than can be reserved here; ask for fewer"
        " blocks",
    )


def check_size(blocks: int, expected: int, held: int) -> None:
    """Refuse contents that are not of the size their blocks take.

    Raises:
        SageLLMError: ``INVALID_REQUEST``.
    """
    if held != expected:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"{blocks} blocks of this layout take {expected} bytes, but {held} were given; both ends must agree on"
            " layers, heads, block size and dtype",
        )


class Pool(KVCache, Protocol):
    """A pool whose blocks can be moved, whatever their layout."""

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks ``source → target`` in every layer; every source is read before any target is written."""
        ...

    def export(self, blocks: Sequence[int]) -> bytes:
        """Contents of blocks in every layer."""
        ...

    def load(self, blocks: Sequence[int], data: Buffer) -> None:
        """Write what :meth:`export` of the same layout made."""
        ...


class PagedKV:
    """Blocks of every layer in one lazily touched allocation.

    Heads are outermost, so that gathering a sequence's rows gives each head a matrix of its own, as matrix
    multiplication wants it.

    Attributes:
        keys: Of each layer, ``[Hkv, N * P, D]``.
        values: Of each layer, ``[Hkv, N * P, Dv]``; nothing where values are read out of the keys.
        both: Of each layer, keys and values as ``[2 Hkv, N * P, D]`` where they are of one size, else ``None``.
        group_specs: The distinct specs, in order of first appearance.
        groups: Of each layer, the place of its spec among those.
    """

    layout = "planes-1"
    """Changes whenever :meth:`export` does."""

    batch_invariant = False

    def __init__(self, specs: Sequence[KVSpec], num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        self.specs = tuple(specs)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.group_specs, self.groups = group_specs(specs)
        tokens = num_blocks * block_size
        shapes = [(spec.num_kv_heads, tokens, size) for spec in self.specs for size in (spec.head_dim, spec.value_dim)]
        sizes = [heads * rows * size for heads, rows, size in shapes]
        self.nbytes = sum(sizes) * dtype.itemsize
        try:
            # torch.zeros would write it all; huge pages would make one token of each plane hold 2 MB.
            store = torch.from_numpy(untouched(self.nbytes, huge=False)).view(dtype)
        except MemoryError:
            raise too_large(num_blocks, self.nbytes) from None
        planes = [piece.view(shape) for piece, shape in zip(torch.split(store, sizes), shapes, strict=True)]
        self.keys = tuple(planes[0::2])
        self.values = tuple(planes[1::2])
        self._written = [plane for plane in planes if plane.shape[2]]
        self.both = tuple(
            keys.as_strided((2 * spec.num_kv_heads, tokens, spec.head_dim), keys.stride(), keys.storage_offset())
            if spec.head_dim == spec.value_dim
            else None
            for spec, keys in zip(self.specs, self.keys, strict=True)
        )

    def row_bytes(self, group: int) -> int:
        """Bytes that a layer of a group keeps of one token."""
        spec = self.group_specs[group]
        return spec.num_kv_heads * (spec.head_dim + spec.value_dim) * self.dtype.itemsize

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks ``source → target`` in every layer; every source is read before any target is written."""
        if not pairs:
            return
        source = torch.tensor([pair[0] for pair in pairs])
        target = torch.tensor([pair[1] for pair in pairs])
        for blocks in self._by_block():
            blocks[:, target] = blocks[:, source]

    def export(self, blocks: Sequence[int]) -> bytes:
        """Contents of blocks: layer by layer, keys then values, head by head, in the order given."""
        index = torch.tensor(blocks, dtype=torch.int64)
        return b"".join(plane[:, index].view(torch.uint8).numpy().tobytes() for plane in self._by_block())

    def load(self, blocks: Sequence[int], data: Buffer) -> None:
        """Write what :meth:`export` of the same layout made.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` when ``data`` is not of the size that these blocks take.
        """
        expected = self.nbytes // self.num_blocks * len(blocks) if self.num_blocks else 0
        check_size(len(blocks), expected, memoryview(data).nbytes)
        index = torch.tensor(blocks, dtype=torch.int64)
        flat = bytes_tensor(data).view(self.dtype)
        sizes = [plane.shape[0] * len(blocks) * self.block_size * plane.shape[2] for plane in self._written]
        for plane, piece in zip(self._by_block(), torch.split(flat, sizes), strict=True):
            plane[:, index] = piece.view(plane.shape[0], len(blocks), self.block_size, plane.shape[3])

    def _by_block(self) -> Iterator[torch.Tensor]:
        """Every layer's keys and values, each ``[Hkv, N, P, D]``."""
        for plane in self._written:
            yield plane.view(plane.shape[0], self.num_blocks, self.block_size, plane.shape[2])
