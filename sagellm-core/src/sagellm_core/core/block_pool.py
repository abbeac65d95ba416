"""The blocks of one group of layers: who holds each, which content it is known by, and which is given away next.

A block is in exactly one of four states. *Used*: sequences hold it. *Leased*: no sequence holds it, but a transfer or
an offload does. *Cached*: nobody holds it, it is kept for its content and evicted least recently used first. *Free*:
holds nothing.

Knows block ids and hashes; nothing of sequences, tokens or tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from sagellm_protocol.blocks import BlockHash


class CacheObserver(Protocol):
    """Is told of every change in what the prefix cache holds."""

    def stored(self, block: BlockHash, parent: BlockHash | None) -> None:
        """``block`` can be found from now on."""
        ...

    def removed(self, block: BlockHash) -> None:
        """``block`` can no longer be found."""
        ...


class Observers:
    """Tells several what one is told.

    Args:
        observers: Told in this order.
    """

    def __init__(self, *observers: CacheObserver) -> None:
        self._observers = list(observers)

    def add(self, observer: CacheObserver) -> None:
        """Tell another one, too."""
        self._observers.append(observer)

    def drop(self, observer: CacheObserver) -> None:
        """Tell one no more."""
        self._observers.remove(observer)

    def stored(self, block: BlockHash, parent: BlockHash | None) -> None:
        """``block`` can be found from now on."""
        for observer in self._observers:
            observer.stored(block, parent)

    def removed(self, block: BlockHash) -> None:
        """``block`` can no longer be found."""
        for observer in self._observers:
            observer.removed(block)


class BlockCounts(NamedTuple):
    """Blocks by state; they sum to the pool's size."""

    free: int
    cached: int
    used: int
    leased: int


class BlockPool:
    """Reference-counted blocks with a content index.

    Args:
        num_blocks: Blocks ``0 .. num_blocks - 1``.
        keep: Whether content outlives its last holder (the prefix cache). Without it a block's content can be found
            only while someone holds it.
        observer: Told of what becomes findable and what ceases to be.
    """

    def __init__(self, num_blocks: int, *, keep: bool = True, observer: CacheObserver | None = None) -> None:
        self.num_blocks = num_blocks
        self.evicted = 0
        self._keep = keep
        self._observer = observer
        self._references = [0] * num_blocks
        self._leases: dict[int, int] = {}
        self._leased = 0  # blocks in the leased state, which those that are also used are not
        self._hash_of: list[BlockHash | None] = [None] * num_blocks
        self._by_hash: dict[BlockHash, int] = {}
        # A stack: what was used last is used again first, so that the pool's pages are touched as late as can be.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that :meth:`allocate` can give."""
        return len(self._free) + len(self._cached)

    def counts(self) -> BlockCounts:
        """Blocks by state."""
        free, cached = len(self._free), len(self._cached)
        return BlockCounts(free, cached, self.num_blocks - free - cached - self._leased, self._leased)

    def find(self, block: BlockHash) -> int | None:
        """The block that holds this content, if there is one. Changes nothing."""
        return self._by_hash.get(block)

    def is_idle(self, block_id: int) -> bool:
        """Whether taking this block lowers :attr:`available`."""
        return block_id in self._cached

    def holders(self, block_id: int) -> int:
        """How many hold this block; a lease counts as one more that will not let go."""
        return self._references[block_id] + (block_id in self._leases)

    def take(self, block_ids: Iterable[int]) -> None:
        """Hold blocks that :meth:`find` gave."""
        references, leases = self._references, self._leases
        for block_id in block_ids:
            if references[block_id] == 0:
                if block_id in leases:
                    self._leased -= 1
                else:
                    del self._cached[block_id]
            references[block_id] += 1

    def allocate(self, count: int) -> list[int]:
        """Hold ``count`` blocks of no content; the caller has looked at :attr:`available`."""
        taken = []
        for _ in range(count):
            if self._free:
                block_id = self._free.pop()
            else:
                block_id, _ = self._cached.popitem(last=False)
                self._forget(block_id)
                self.evicted += 1
            self._references[block_id] = 1
            taken.append(block_id)
        return taken

    def publish(self, block_id: int, block: BlockHash, parent: BlockHash | None) -> None:
        """Let a held block be found by its content, unless another block of the same content is found already."""
        if block in self._by_hash or self._hash_of[block_id] is not None:
            return
        self._by_hash[block] = block_id
        self._hash_of[block_id] = block
        if self._observer is not None:
            self._observer.stored(block, parent)

    def release(self, block_ids: Sequence[int]) -> None:
        """Let go of held blocks, in order of position: the last of them is evicted first."""
        references = self._references
        for block_id in reversed(block_ids):
            references[block_id] -= 1
            if references[block_id] == 0:
                if block_id in self._leases:
                    self._leased += 1
                else:
                    self._retire(block_id)

    def lease(self, block_ids: Iterable[int]) -> None:
        """Keep held or cached blocks from being given away until :meth:`end_lease`."""
        for block_id in block_ids:
            if self._references[block_id] == 0 and block_id not in self._leases:
                del self._cached[block_id]
                self._leased += 1
            self._leases[block_id] = self._leases.get(block_id, 0) + 1

    def end_lease(self, block_ids: Iterable[int]) -> None:
        """Undo one :meth:`lease` of each block."""
        for block_id in block_ids:
            self._leases[block_id] -= 1
            if self._leases[block_id] == 0:
                del self._leases[block_id]
                if self._references[block_id] == 0:
                    self._leased -= 1
                    self._retire(block_id)

    def clear(self) -> None:
        """Forget all content. Blocks that are held stay held."""
        for block_id, block in enumerate(self._hash_of):
            if block is not None:
                self._forget(block_id)
        self._free.extend(self._cached)
        self._cached.clear()

    def check_integrity(self, held: dict[int, int]) -> None:
        """Raise AssertionError unless every block is in one state and is held as often as ``held`` says.

        Args:
            held: Block id to number of holders, over all sequences.
        """
        for block_id, references in enumerate(self._references):
            assert references == held.get(block_id, 0), (
                f"block {block_id} counts {references} references but {held.get(block_id, 0)} sequences hold it"
            )
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is on the free list twice"
        used = {block_id for block_id, references in enumerate(self._references) if references}
        leased = set(self._leases) - used
        assert len(leased) == self._leased, f"{len(leased)} blocks are leased but {self._leased} are counted"
        assert len(free | cached | used | leased) == len(free) + len(cached) + len(used) + len(leased), "two states"
        assert len(free) + len(cached) + len(used) + len(leased) == self.num_blocks, "a block has no state"
        index = {block: block_id for block_id, block in enumerate(self._hash_of) if block is not None}
        assert index == self._by_hash, "the content index and the blocks disagree"
        assert all(self._hash_of[block_id] is None for block_id in free), "a free block has content"
        assert all(self._hash_of[block_id] is not None for block_id in cached), "a cached block has no content"

    def _retire(self, block_id: int) -> None:
        if self._hash_of[block_id] is None:
            self._free.append(block_id)
        elif self._keep:
            self._cached[block_id] = None
        else:
            self._forget(block_id)
            self._free.append(block_id)

    def _forget(self, block_id: int) -> None:
        block = self._hash_of[block_id]
        assert block is not None
        self._hash_of[block_id] = None
        del self._by_hash[block]
        if self._observer is not None:
            self._observer.removed(block)
