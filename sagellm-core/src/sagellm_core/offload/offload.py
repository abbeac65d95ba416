"""Decides what is kept outside the device, and what is brought back for whom; done a slice at a time between steps.

A block is written as soon as it is full rather than when it is evicted: what was written survives the process, however
it ends, and an evicted block's place can be given away at once. Its bytes are copied between two steps, so that nothing
need be leased meanwhile. What a waiting sequence would find in a tier is read by a thread, copied into blocks that
nobody holds, and is from then on a prefix like any other; until then the sequence is passed over.

Knows block ids and hashes, and time; nothing of files, budgets or tensors.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

from typing_extensions import Buffer

from sagellm_core.core.block_pool import BlockPool
from sagellm_core.core.kv_log import KVLog
from sagellm_core.core.sequence import Sequence
from sagellm_protocol.blocks import BlockHash

from .base import DISK, HOST, Named
from .economy import Economy
from .shelf import Shelf
from .worker import Load, Worker

SLICE_S = 0.002
SHARE = 0.05
"""Copying between two steps ends with the block during which this many seconds were over, or this share of the step
before if that is more."""
LOADS_AT_ONCE = 8
FLUSH_S = 10.0
"""Longest that blocks may take to be written before the device forgets them, or the core ends."""


class Copier(Protocol):
    """What can copy blocks out of the device and into it; an executor can."""

    def export_blocks(self, blocks: list[int]) -> bytes:
        """Contents of blocks, one after another."""
        ...

    def import_blocks(self, blocks: list[int], data: Buffer) -> None:
        """Write what :meth:`export_blocks` made."""
        ...


class _Return:
    """What is brought back for one sequence.

    Attributes:
        load: Under way; ``None`` when there was nothing to bring, or it is over.
        chain: All full blocks of the prefix, those on the device too, in order.
        media: Where each block that was brought back came from.
    """

    def __init__(self, load: Load | None, chain: list[BlockHash]) -> None:
        self.load = load
        self.chain = chain
        self.media: dict[BlockHash, str] = {}


class Offload:
    """One core's blocks outside the device; a :class:`~sagellm_core.core.block_pool.CacheObserver` of its pool.

    Args:
        pool: Its blocks.
        block_size: Tokens of a block.
        copier: Copies them.
        shelf: Where they go.
        kv_log: Told what tiers hold.
        wake: Called from a thread when :meth:`work` has something to do.

    Attributes:
        hit_tokens: Of each medium, prompt tokens that were found on the device because they had been brought back.
        loaded_blocks: Blocks brought back, ever.
        economy: What computing and bringing back were measured to take.
    """

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        copier: Copier,
        shelf: Shelf,
        kv_log: KVLog,
        wake: Callable[[], None],
    ) -> None:
        self.hit_tokens = {HOST: 0, DISK: 0}
        self.loaded_blocks = 0
        self.economy = Economy()
        self._pool = pool
        self._block_size = block_size
        self._copier = copier
        self._shelf = shelf
        self._kv_log = kv_log
        self._worker = Worker(shelf, wake)
        self._unwritten: OrderedDict[BlockHash, Named] = OrderedDict()
        self._returns: dict[Sequence, _Return] = {}
        self._loading = 0
        self._step_s = 0.0

    # -- what the pool tells ------------------------------------------------------------------------------------------

    def stored(self, block: BlockHash, parent: BlockHash | None) -> None:
        """A block is full: it is to be written."""
        name = Named(block, parent)
        if self._shelf.where(name) is None:
            self._unwritten[block] = name

    def removed(self, block: BlockHash) -> None:
        """A block was evicted; if it was not written yet, it is lost."""
        self._unwritten.pop(block, None)

    # -- what the scheduler asks --------------------------------------------------------------------------------------

    def hold(self, sequence: Sequence) -> bool:
        """Whether a sequence that could be admitted is to wait, because its prefix is being brought back."""
        known = self._returns.get(sequence)
        if known is not None:
            return known.load is not None
        if self._loading >= LOADS_AT_ONCE:
            return True
        chain, missing, media = self._missing(sequence)
        load = None
        if missing and self.economy.pays(media, self._block_size):
            load = Load(missing)
            self._loading += 1
            self._worker.load(load)
        self._returns[sequence] = _Return(load, chain)
        return load is not None

    def admitted(self, sequence: Sequence) -> None:
        """A sequence has been admitted, with what it found."""
        found = self._returns.pop(sequence, None)
        if found is not None and sequence.preemptions == 0:
            for block in found.chain[: sequence.num_computed // self._block_size]:
                if block in found.media:
                    self.hit_tokens[found.media[block]] += self._block_size

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        found = self._returns.pop(sequence, None)
        if found is not None and found.load is not None:
            self._worker.give_up(found.load)
            self._loading -= 1

    # -- what the loop does -------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        """Whether :meth:`work` would do anything now."""
        arrived = any(r.load is not None and (r.load.arrived or r.load.read) for r in self._returns.values())
        return arrived or bool(self._unwritten and self._worker.accepts)

    def stepped(self, num_scheduled: list[int], seconds: float) -> None:
        """A step is over.

        Args:
            num_scheduled: Tokens of each of its rows.
            seconds: What it took.
        """
        self._step_s = seconds
        if max(num_scheduled) >= self._block_size:
            self.economy.computed(sum(num_scheduled), seconds)

    def work(self) -> bool:
        """Copy for a while.

        Returns:
            Whether a sequence need not wait any longer.
        """
        until = time.perf_counter() + max(SLICE_S, SHARE * self._step_s)
        released = False
        for known in list(self._returns.values()):
            if known.load is not None and (known.load.arrived or known.load.read):
                self._bring_back(known, known.load, until)
                released = released or known.load is None
                if time.perf_counter() >= until:
                    break
        while self._unwritten and self._worker.accepts and time.perf_counter() < until:
            block, name = self._unwritten.popitem(last=False)
            block_id = self._pool.find(block)
            if block_id is not None:
                self._worker.write(name, self._copier.export_blocks([block_id]))
        for change in self._shelf.changes():
            if change.stored:
                self._kv_log.stored(change.block, change.parent, change.medium)
            else:
                self._kv_log.removed(change.block, change.medium)
        return released

    def stats(self) -> dict[str, int | None]:
        """Its fields of :class:`~sagellm_core.core.request.CoreStats`."""
        return {
            "host_hit_tokens": self.hit_tokens[HOST],
            "disk_hit_tokens": self.hit_tokens[DISK],
            "host_kv_bytes": self._shelf.nbytes(HOST),
            "disk_kv_bytes": self._shelf.nbytes(DISK),
            "offloaded_blocks": self._shelf.written,
            "loaded_blocks": self.loaded_blocks,
        }

    def flush(self) -> None:
        """Write what is full, as far as that takes no longer than :data:`FLUSH_S`."""
        until = time.perf_counter() + FLUSH_S
        while self._unwritten and (left := until - time.perf_counter()) > 0:
            if not self._worker.accepts:
                self._worker.settle(left)
            self.work()
        self._worker.settle(max(0.0, until - time.perf_counter()))

    def stop(self) -> None:
        """Write what is full, bring back nothing more."""
        self.flush()
        self._worker.stop()

    def _missing(self, sequence: Sequence) -> tuple[list[BlockHash], deque[Named], list[str]]:
        """The full blocks of a prefix that the device or a tier has; those that only a tier has, and which."""
        chain: list[BlockHash] = []
        missing: deque[Named] = deque()
        media: list[str] = []
        most = 0 if sequence.read_whole else (len(sequence.tokens) - 1) // self._block_size
        for index in range(min(most, self._pool.num_blocks)):
            block = sequence.block_hash(index, self._block_size)
            if self._pool.find(block) is None:
                name = Named(block, sequence.parent_hash(index))
                medium = self._shelf.where(name)
                if medium is None:
                    break
                missing.append(name)
                media.append(medium)
            chain.append(block)
        return chain, missing, media

    def _bring_back(self, known: _Return, load: Load, until: float) -> None:
        """Copy what has arrived into blocks that nobody holds."""
        pool = self._pool
        # Held meanwhile, and let go of in order, so that a prefix never evicts itself and its end is evicted first.
        held = [found for block in known.chain if (found := pool.find(block)) is not None]
        pool.take(held)
        try:
            while (arrived := self._worker.take(load)) is not None:
                name, data, medium, seconds = arrived
                began = time.perf_counter()
                if pool.find(name.block) is None:
                    if not pool.available:
                        self._worker.give_up(load)
                        break
                    [block_id] = pool.allocate(1)
                    held.append(block_id)
                    self._copier.import_blocks([block_id], data)
                    pool.publish(block_id, name.block, name.parent)
                    known.media[name.block] = medium
                    self.loaded_blocks += 1
                self.economy.loaded(medium, 1, seconds + time.perf_counter() - began)
                if time.perf_counter() >= until:
                    break
        finally:
            pool.release(held)
        if load.given_up or (load.read and not load.arrived):
            known.load = None
            self._loading -= 1
