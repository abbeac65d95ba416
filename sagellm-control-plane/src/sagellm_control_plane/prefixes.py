"""Which engines hold which prefixes: as guessed from what was sent where, or as the engines themselves tell.

A block's hash names the whole prefix up to its end. Sets of engines are the bits of an integer, so that a prompt is
looked up for all engines at once, in as many steps as its longest match has blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from sagellm_protocol import BlocksRemoved, BlocksStored, KVEventBatch

from .board import Ints

UNIT_TOKENS = 64
"""Granularity of guesses: of smaller blocks only some are looked at."""
_FEW = 8


class Holders:
    """Who holds what."""

    def __init__(self) -> None:
        self._rows: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: int, block: Hashable) -> None:
        """Engine ``row`` holds a block."""
        self._rows[block] = self._rows.get(block, 0) | 1 << row

    def discard(self, row: int, block: Hashable) -> None:
        """It holds it no longer."""
        left = self._rows.get(block, 0) & ~(1 << row)
        if left:
            self._rows[block] = left
        else:
            self._rows.pop(block, None)

    def matched(self, blocks: Sequence[Hashable], rows: int) -> Ints:
        """Blocks of the longest prefix that each engine holds.

        Args:
            blocks: Of a prompt, in order.
            rows: Rows of the board.

        Returns:
            A count a row, ``[rows]`` int64.
        """
        depths = np.zeros(rows, np.int64)
        holding = -1
        for depth, block in enumerate(blocks):
            still = self._rows.get(block, 0) & holding
            if depth and still != holding:
                _write(depths, holding & ~still, depth)
            if not still:
                return depths
            holding = still
        if blocks:
            _write(depths, holding, len(blocks))
        return depths


def _write(depths: Ints, rows: int, depth: int) -> None:
    """Set the entries whose bits are set."""
    if rows.bit_count() <= _FEW:
        while rows:
            lowest = rows & -rows
            depths[lowest.bit_length() - 1] = depth
            rows ^= lowest
        return
    packed = np.frombuffer(rows.to_bytes((len(depths) + 7) // 8, "little"), np.uint8)
    depths[np.unpackbits(packed, count=len(depths), bitorder="little") != 0] = depth


class GuessedPrefixes:
    """What each engine's cache holds by now if it computed what it was sent and evicts the least recently used.

    Bounded: an engine's share is what its cache holds where that is known, and at most an equal part of ``max_blocks``.

    Args:
        max_blocks: Entries over all engines.
    """

    def __init__(self, max_blocks: int = 1_000_000) -> None:
        self._max_blocks = max_blocks
        self._holders = Holders()
        # Ordered dictionaries: finding the oldest of a plain one gets slower with every one that went before it.
        self._held: dict[int, OrderedDict[Hashable, None]] = {}

    def __len__(self) -> int:
        return sum(len(held) for held in self._held.values())

    def matched_tokens(self, blocks: Sequence[Hashable], block_size: int, rows: int) -> Ints:
        """Tokens of a prompt that each engine is guessed to hold, ``[rows]`` int64."""
        if not blocks:
            return np.zeros(rows, np.int64)
        step = _step(block_size)
        return self._holders.matched(blocks[step - 1 :: step], rows) * (step * block_size)

    def note(self, row: int, blocks: Sequence[Hashable], block_size: int, cache_tokens: int) -> None:
        """A prompt was sent to an engine.

        Args:
            row: The engine.
            blocks: Of the prompt, in order.
            block_size: Tokens in each.
            cache_tokens: What that engine's cache holds; negative if unknown.
        """
        step = _step(block_size)
        held = self._held.setdefault(row, OrderedDict())
        most = self._max_blocks // len(self._held)
        if cache_tokens >= 0:
            most = min(most, cache_tokens // (step * block_size))
        # Last blocks first, so that the end of a prefix is forgotten before its beginning.
        for block in reversed(blocks[step - 1 :: step]):
            if block in held:
                held.move_to_end(block)
            else:
                held[block] = None
                self._holders.add(row, block)
        while len(held) > most:
            self._holders.discard(row, held.popitem(last=False)[0])

    def forget(self, row: int) -> None:
        """Nothing is known of an engine's cache any more."""
        for block in self._held.pop(row, ()):
            self._holders.discard(row, block)


def _step(block_size: int) -> int:
    return max(1, UNIT_TOKENS // block_size)


class ToldPrefixes:
    """What the engines' caches hold, by their own events; bounded by those caches."""

    def __init__(self) -> None:
        self._holders = Holders()
        self._held: dict[int, dict[Hashable, set[str]]] = {}
        self._last: dict[int, tuple[str, int]] = {}

    def matched_tokens(self, blocks: Sequence[Hashable], block_size: int, rows: int) -> Ints:
        """Tokens of a prompt that each engine holds, ``[rows]`` int64."""
        return self._holders.matched(blocks, rows) * block_size

    def apply(self, row: int, batch: KVEventBatch) -> None:
        """Take in what changed; after a gap, from an empty view."""
        last = self._last.get(row)
        if last is not None and last != (batch.epoch, batch.sequence - 1):
            self.forget(row)
        self._last[row] = (batch.epoch, batch.sequence)
        held = self._held.setdefault(row, {})
        for event in batch.events:
            if isinstance(event, BlocksStored):
                for block in event.block_hashes:
                    if block not in held:
                        self._holders.add(row, block)
                    held.setdefault(block, set()).add(event.medium)
            elif isinstance(event, BlocksRemoved):
                self._remove(row, event.block_hashes, event.medium)
            else:
                self._remove(row, tuple(held), None)

    def forget(self, row: int) -> None:
        """Nothing is known of an engine's cache any more."""
        self._remove(row, tuple(self._held.pop(row, ())), None)
        self._last.pop(row, None)

    def _remove(self, row: int, blocks: Iterable[Hashable], medium: str | None) -> None:
        held = self._held.get(row, {})
        for block in blocks:
            media = held.get(block, set())
            media.discard(medium or "")
            if medium is None or not media:
                held.pop(block, None)
                self._holders.discard(row, block)
