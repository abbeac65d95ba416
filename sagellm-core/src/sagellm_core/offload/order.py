"""The order in which blocks are given up: the one used longest ago among those that no other one follows.

Without the block before it a block is nothing, so that a prefix is given up from its end. Knows hashes and times;
nothing of bytes.
"""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heappush

from sagellm_protocol.blocks import BlockHash

from .base import Named


class LeafOrder:
    """Blocks with the time of their last use."""

    def __init__(self) -> None:
        self._used: dict[BlockHash, int] = {}
        self._parents: dict[BlockHash, BlockHash | None] = {}
        self._followers: Counter[BlockHash] = Counter()
        # With entries that no longer hold; they are passed over as they are met.
        self._heap: list[tuple[int, BlockHash]] = []

    def use(self, name: Named, used: int) -> None:
        """A block is there, and was used at some time."""
        block, parent = name
        if block not in self._used:
            self._parents[block] = parent
            if parent is not None:
                self._followers[parent] += 1
        self._used[block] = used
        heappush(self._heap, (used, block))
        if len(self._heap) > 4 * len(self._used) + 64:
            self._heap = [(used, block) for block, used in self._used.items()]
            heapify(self._heap)

    def give_up(self) -> Named | None:
        """The block to be given up next, which is not there any more; ``None`` when there is none."""
        while self._heap:
            used, block = heappop(self._heap)
            if self._used.get(block) != used or self._followers[block]:
                continue
            del self._used[block], self._followers[block]
            parent = self._parents.pop(block)
            if parent is not None:
                self._followers[parent] -= 1
                if not self._followers[parent]:
                    del self._followers[parent]
                if parent in self._used:
                    # It was of use for as long as this one.
                    self._used[parent] = max(used, self._used[parent])
                    heappush(self._heap, (self._used[parent], parent))
            return Named(block, parent)
        return None
