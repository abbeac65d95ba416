"""Which blocks each sequence holds, in every group of layers: prefix hits, growth, sliding windows, release.

Layers with equal :class:`~sagellm_protocol.backend.KVSpec` form a group; each group has a pool of its own, and a
sequence one block table in each. Content is found by the protocol's block hash, so a prefix may be shared by any two
sequences whose tokens, model and salt agree.

Knows nothing of budgets, priorities or executors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence as Seq

from sagellm_protocol.backend import KVSpec

from .block_pool import BlockCounts, BlockPool, CacheObserver
from .sequence import Sequence

GONE = -1
"""Stands in a table for a block that fell out of the window."""


def group_specs(specs: Seq[KVSpec]) -> tuple[KVSpec, ...]:
    """The distinct specs, in order of first appearance: one a group."""
    return tuple(dict.fromkeys(specs))


class BlockManager:
    """The block tables of all sequences.

    Args:
        windows: For each group, tokens back that are visible (the token itself included), or ``None`` for all.
        num_blocks: Blocks of each group's pool.
        block_size: Tokens of a block.
        keep: Whether prefixes outlive the sequences that computed them.
        observer: Told of what the prefix cache holds; it hears of one group, which stands for all.
    """

    def __init__(
        self,
        windows: Seq[int | None],
        num_blocks: int,
        block_size: int,
        *,
        keep: bool = True,
        observer: CacheObserver | None = None,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.queried_tokens = 0
        self.hit_tokens = 0
        self._windows = tuple(windows)
        self._windowed = [(group, window) for group, window in enumerate(windows) if window is not None]
        self._full = [group for group, window in enumerate(windows) if window is None]
        # A prefix is worth asking for where nothing of it has slid away.
        self._speaker = self._full[0] if self._full else 0
        self.pools = [
            BlockPool(num_blocks, keep=keep, observer=observer if group == self._speaker else None)
            for group in range(len(self._windows))
        ]

    @property
    def capacity(self) -> int:
        """Tokens that one sequence can hold with the whole pool to itself, leases aside."""
        return self.num_blocks * self.block_size

    @property
    def evicted(self) -> int:
        """Cached blocks that were given away, ever."""
        return sum(pool.evicted for pool in self.pools)

    def counts(self) -> BlockCounts:
        """Blocks of all groups by state."""
        return BlockCounts(*map(sum, zip(*(pool.counts() for pool in self.pools), strict=True)))

    def admit(self, sequence: Sequence, spare: int = 0) -> list[list[int]] | None:
        """Give a sequence blocks for all its tokens, those of its prefix from the cache as far as they are there.

        Sets ``tables``, ``num_computed`` and ``published``. At least the last token is left to compute.

        Args:
            sequence: Holds none yet.
            spare: Blocks that must stay available in each group afterwards.

        Returns:
            For each group its block ids in order of position, or ``None`` when there are not enough: nothing has
            changed then. A block that the window has left behind is named by the first one still visible: a valid block
            whose content is never looked at.
        """
        needed = self._blocks_for(len(sequence.tokens))
        hit = self._longest_hit(sequence)
        shared = [self._shared(sequence, group, hit) for group in range(len(self.pools))]
        if any(missing > -spare for missing in self._missing(shared, needed - hit)):
            return None
        for pool, table in zip(self.pools, shared, strict=True):
            pool.take(block_id for block_id in table if block_id != GONE)
            table.extend(pool.allocate(needed - hit))
        sequence.tables = shared
        sequence.published = hit
        sequence.num_computed = hit * self.block_size
        if sequence.preemptions == 0:
            sequence.cached_tokens = sequence.num_computed
            self.queried_tokens += sequence.prompt_len
            self.hit_tokens += sequence.num_computed
        return [self._named(table, hit) for table in shared]

    def needed(self, sequence: Sequence, holders: Iterable[Sequence]) -> int | None:
        """How many of some that hold blocks must let go of them so that a sequence can be admitted.

        Args:
            sequence: It waits; what it would share with them stays in use.
            holders: They run; in the order in which they are to give way.

        Returns:
            As few as do, one at least; ``None`` where all of them together do not.
        """
        hit = self._longest_hit(sequence)
        shared = [self._shared(sequence, group, hit) for group in range(len(self.pools))]
        lacking = self._missing(shared, self._blocks_for(len(sequence.tokens)) - hit)
        kept = [{GONE, *table} for table in shared]
        held: list[Counter[int]] = [Counter() for _ in self.pools]
        for number, holder in enumerate(holders, start=1):
            for group, table in enumerate(holder.tables):
                pool, counter = self.pools[group], held[group]
                counter.update(block_id for block_id in table if block_id != GONE)
                lacking[group] -= sum(
                    1
                    for block_id in table
                    if block_id not in kept[group] and counter[block_id] == pool.holders(block_id)
                )
            if all(missing <= 0 for missing in lacking):
                return number
        return None

    def extend(self, sequence: Sequence, num_tokens: int, spare: int = 0) -> list[list[int]] | None:
        """Give a running sequence the blocks it lacks for its first ``num_tokens`` tokens.

        Args:
            sequence: Which.
            num_tokens: From its first on.
            spare: Blocks that must stay available in each group if it is given some.

        Returns:
            For each group the new block ids; empty when it has enough; ``None`` when there are not enough: nothing has
            changed then.
        """
        held = len(sequence.tables[0])
        if num_tokens <= held * self.block_size:
            return []
        missing = self._blocks_for(num_tokens) - held
        if any(pool.available - spare < missing for pool in self.pools):
            return None
        grown = [pool.allocate(missing) for pool in self.pools]
        for table, new in zip(sequence.tables, grown, strict=True):
            table.extend(new)
        return grown

    def advance(self, sequence: Sequence) -> None:
        """After a step: publish the blocks that became full, and let go of those that fell out of a window."""
        size = self.block_size
        if (sequence.published + 1) * size <= sequence.num_computed:
            self._publish(sequence, sequence.num_computed // size)
        for group, window in self._windowed:
            # The next token sees itself and the window - 1 tokens before it.
            visible_from = max(0, sequence.num_computed - window + 1) // size
            table = sequence.tables[group]
            left = visible_from - 1
            slid = []
            while left >= 0 and table[left] != GONE:
                slid.append(table[left])
                table[left] = GONE
                left -= 1
            self.pools[group].release(slid[::-1])

    def release(self, sequence: Sequence) -> None:
        """Take all its blocks from a sequence."""
        for pool, table in zip(self.pools, sequence.tables, strict=True):
            pool.release([block_id for block_id in table if block_id != GONE])
        sequence.tables = []
        sequence.published = 0
        sequence.num_computed = 0

    def clear(self) -> None:
        """Forget every prefix. Blocks that are held stay held."""
        for pool in self.pools:
            pool.clear()

    def held(self, sequences: Iterable[Sequence]) -> tuple[int, list[int]]:
        """What sequences hold together, shared blocks counted once.

        Returns:
            Tokens that are computed, and for each group the number of blocks.
        """
        tokens: dict[int, int] = {}
        blocks: list[set[int]] = [set() for _ in self.pools]
        for sequence in sequences:
            if sequence.tables:
                for index, block_id in enumerate(sequence.tables[self._speaker]):
                    filled = min(self.block_size, sequence.num_computed - index * self.block_size)
                    if block_id != GONE and filled > 0:
                        tokens[block_id] = max(filled, tokens.get(block_id, 0))
            for seen, table in zip(blocks, sequence.tables, strict=False):
                seen.update(block_id for block_id in table if block_id != GONE)
        return sum(tokens.values()), [len(seen) for seen in blocks]

    def check_integrity(self, holders: Iterable[Sequence]) -> None:
        """Raise AssertionError unless references and states agree with what ``holders`` hold."""
        held: list[Counter[int]] = [Counter() for _ in self.pools]
        for sequence in holders:
            for counter, table in zip(held, sequence.tables, strict=True):
                present = [block_id for block_id in table if block_id != GONE]
                assert len(set(present)) == len(present), f"a table names a block twice: {table}"
                counter.update(present)
        for pool, counter in zip(self.pools, held, strict=True):
            pool.check_integrity(counter)

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _missing(self, shared: list[list[int]], new: int) -> list[int]:
        """For each group, how many blocks are missing to hold ``new`` ones beside those that are ``shared``."""
        missing = []
        for pool, table in zip(self.pools, shared, strict=True):
            woken = sum(1 for block_id in table if block_id != GONE and pool.is_idle(block_id))
            missing.append(new - pool.available + woken)
        return missing

    def _publish(self, sequence: Sequence, until: int) -> None:
        for index in range(sequence.published, until):
            block = sequence.block_hash(index, self.block_size)
            parent = sequence.parent_hash(index)
            for pool, table in zip(self.pools, sequence.tables, strict=True):
                if table[index] != GONE:
                    pool.publish(table[index], block, parent)
        sequence.published = until

    def _longest_hit(self, sequence: Sequence) -> int:
        """Blocks at the start of a sequence that every group can supply, as far as its window looks back."""
        most = (len(sequence.tokens) - 1) // self.block_size
        if sequence.read_whole:
            return 0
        for group in self._full:
            pool = self.pools[group]
            for index in range(most):
                if pool.find(sequence.block_hash(index, self.block_size)) is None:
                    most = index
                    break
        for hit in range(most, 0, -1):
            if all(self._covers(sequence, group, hit) for group, _ in self._windowed):
                return hit
        return 0

    def _covers(self, sequence: Sequence, group: int, hit: int) -> bool:
        pool = self.pools[group]
        return all(
            pool.find(sequence.block_hash(index, self.block_size)) is not None
            for index in range(hit - 1, self._visible_from(group, hit) - 1, -1)
        )

    def _visible_from(self, group: int, hit: int) -> int:
        window = self._windows[group]
        return 0 if window is None else max(0, hit * self.block_size - window + 1) // self.block_size

    def _shared(self, sequence: Sequence, group: int, hit: int) -> list[int]:
        pool, start = self.pools[group], self._visible_from(group, hit)
        table = [GONE] * min(start, hit)
        for index in range(len(table), hit):
            block_id = pool.find(sequence.block_hash(index, self.block_size))
            assert block_id is not None
            table.append(block_id)
        return table

    def _named(self, table: list[int], hit: int) -> list[int]:
        if not hit or table[0] != GONE:
            return list(table)
        visible = next(block_id for block_id in table if block_id != GONE)
        return [visible if block_id == GONE else block_id for block_id in table]
