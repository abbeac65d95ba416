"""The block manager of a model that keeps nothing of what it reads: there is always room, and nothing is shared.

Knows nothing of encoders, budgets or executors.
"""

from __future__ import annotations

from collections.abc import Iterable

from .block_pool import BlockCounts
from .sequence import Sequence


class NoBlocks:
    """Does as :class:`~.block_manager.BlockManager` does, over no groups of layers.

    Args:
        block_size: Tokens of a block, were there any.
    """

    num_blocks = 0
    queried_tokens = 0
    hit_tokens = 0
    evicted = 0

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size

    def counts(self) -> BlockCounts:
        """None in any state."""
        return BlockCounts(0, 0, 0, 0)

    def admit(self, sequence: Sequence, spare: int = 0) -> list[list[int]]:
        """No blocks, which is enough."""
        return []

    def needed(self, sequence: Sequence, holders: Iterable[Sequence]) -> int | None:
        """One that leaves its slot is enough."""
        return 1 if any(True for _ in holders) else None

    def extend(self, sequence: Sequence, num_tokens: int, spare: int = 0) -> list[list[int]]:
        """No blocks, which is enough."""
        return []

    def advance(self, sequence: Sequence) -> None:
        """Nothing became full."""

    def release(self, sequence: Sequence) -> None:
        """There is nothing to take; what was computed is gone."""
        sequence.num_computed = 0

    def clear(self) -> None:
        """There is nothing to forget."""

    def held(self, sequences: Iterable[Sequence]) -> tuple[int, list[int]]:
        """No tokens, in no groups."""
        return 0, []

    def check_integrity(self, holders: Iterable[Sequence]) -> None:
        """Raise AssertionError if anybody holds a block."""
        assert not any(sequence.tables for sequence in holders), "a block is held where there are none"
