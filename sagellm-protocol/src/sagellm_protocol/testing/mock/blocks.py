"""A KV cache without keys or values: how many blocks are free, cached, used and leased, and which prefixes are known.

A block is *used* while a sequence holds it. One that is full has a hash and may be held by several; once nobody holds
it, it stays *cached* until its room is wanted, the least recently used first. Knows nothing of requests or time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from sagellm_protocol.blocks import BlockHash, BlocksCleared, BlocksRemoved, BlocksStored, KVEvent


class BlockPool:
    """Counts of blocks, and the blocks that have a hash.

    Args:
        total: Blocks in all.
        block_size: Tokens of a block.
    """

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self.free = total
        self.evicted = 0
        self._unnamed = 0
        self._holders: dict[BlockHash, int] = {}
        self._cached: OrderedDict[BlockHash, None] = OrderedDict()
        self._events: list[KVEvent] = []

    @property
    def used(self) -> int:
        """Blocks that sequences hold, a shared one counted once."""
        return self._unnamed + len(self._holders)

    @property
    def cached(self) -> int:
        """Blocks that nobody holds, kept for their content."""
        return len(self._cached)

    @property
    def leased(self) -> int:
        """Blocks held for a transfer; the mock offers none."""
        return 0

    @property
    def available(self) -> int:
        """Blocks that could be taken now."""
        return self.free + self.cached

    def known(self, hashes: Sequence[BlockHash]) -> int:
        """How many leading ones of a chain are held or cached."""
        for count, block in enumerate(hashes):
            if block not in self._holders and block not in self._cached:
                return count
        return len(hashes)

    def cached_among(self, hashes: Sequence[BlockHash]) -> int:
        """How many of these nobody holds now, so that holding them lowers what is available."""
        return sum(block in self._cached for block in hashes)

    def hold(self, hashes: Sequence[BlockHash]) -> None:
        """Hold blocks that are known."""
        for block in hashes:
            self._cached.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1

    def take(self, count: int) -> bool:
        """Take blocks without a hash, evicting cached ones for want of free ones. All, or none and ``False``."""
        if count > self.available:
            return False
        evict = [self._cached.popitem(last=False)[0] for _ in range(count - self.free)]
        if evict:
            self.evicted += len(evict)
            self._events.append(BlocksRemoved(block_hashes=tuple(evict)))
        self.free -= count - len(evict)
        self._unnamed += count
        return True

    def name(self, block: BlockHash, parent: BlockHash | None) -> None:
        """Give one of a caller's unnamed blocks its hash; if that is known, the caller holds the known one instead."""
        self._unnamed -= 1
        if block in self._holders or block in self._cached:
            self.free += 1
            self.hold((block,))
            return
        self._holders[block] = 1
        self._events.append(BlocksStored(block_hashes=(block,), parent=parent, block_size=self.block_size))

    def release(self, hashes: Sequence[BlockHash], unnamed: int) -> None:
        """Let go of blocks. Those with a hash stay cached, the end of a chain to be evicted before its beginning."""
        self._unnamed -= unnamed
        self.free += unnamed
        for block in reversed(hashes):
            self._holders[block] -= 1
            if not self._holders[block]:
                del self._holders[block]
                self._cached[block] = None

    def clear(self) -> None:
        """Forget everything that nobody holds."""
        self.free += len(self._cached)
        self._cached.clear()
        self._events.append(BlocksCleared())

    def take_events(self) -> tuple[KVEvent, ...]:
        """What changed since this was last asked."""
        events, self._events = tuple(self._events), []
        return events
