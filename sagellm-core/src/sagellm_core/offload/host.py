"""Blocks in host memory.

On a processor that is the memory the pool itself is in, so that it pays only where the pool may not grow.
"""

from __future__ import annotations

import time

from sagellm_protocol.blocks import BlockHash

from .base import HOST, Named, Removed
from .order import LeafOrder


class HostTier:
    """A dictionary of bounded size.

    Args:
        limit_bytes: Most bytes of blocks.
    """

    medium = HOST

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._blocks: dict[BlockHash, bytes] = {}
        self._order = LeafOrder()
        self._bytes = 0

    def open(self, removed: Removed) -> None:
        """It begins empty."""

    @property
    def nbytes(self) -> int:
        """Bytes it holds."""
        return self._bytes

    def __contains__(self, name: Named) -> bool:
        """Whether it has a block."""
        return name.block in self._blocks

    def read(self, name: Named) -> bytes | None:
        """A block's bytes; it is used from now on."""
        data = self._blocks.get(name.block)
        if data is not None:
            self._order.use(name, time.monotonic_ns())
        return data

    def write(self, name: Named, data: bytes, removed: Removed) -> bool:
        """Keep a block."""
        if name.block in self._blocks:
            return False
        self._blocks[name.block] = data
        self._bytes += len(data)
        self._order.use(name, time.monotonic_ns())
        while self._bytes > self._limit:
            given_up = self._order.give_up()
            assert given_up is not None, "what holds bytes is in the order"
            self._bytes -= len(self._blocks.pop(given_up.block))
            if given_up != name:
                removed(given_up.block)
        return name.block in self._blocks
