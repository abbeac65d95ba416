"""All tiers together: a block is written to each, and read from the first that has it.

Knows nothing of threads but this: one writes and reads, another asks where blocks are and takes what has changed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from sagellm_protocol.blocks import BlockHash

from .base import Named, Removed, Tier


class Change(NamedTuple):
    """A tier has a block from now on, or no longer."""

    stored: bool
    medium: str
    block: BlockHash
    parent: BlockHash | None


class Shelf:
    """Tiers, the fastest first.

    Args:
        tiers: At least one.

    Attributes:
        written: Blocks that were kept, ever, by at least one tier.
    """

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self.written = 0
        self._tiers = tuple(tiers)
        self._changes: deque[Change] = deque()

    def open(self) -> None:
        """Learn what tiers have; before anything is read or written."""
        for tier in self._tiers:
            tier.open(self._teller(tier))

    def where(self, name: Named) -> str | None:
        """The medium that a block would be read from."""
        return next((tier.medium for tier in self._tiers if name in tier), None)

    def nbytes(self, medium: str) -> int | None:
        """Bytes held in a medium; ``None`` where there is no tier."""
        return next((tier.nbytes for tier in self._tiers if tier.medium == medium), None)

    def changes(self) -> list[Change]:
        """What changed since the last call."""
        taken = []
        while self._changes:
            taken.append(self._changes.popleft())
        return taken

    def read(self, name: Named) -> tuple[bytes, str] | None:
        """A block's bytes and the medium they came from; tiers that are faster keep it as well from now on."""
        for place, tier in enumerate(self._tiers):
            data = tier.read(name)
            if data is not None:
                for faster in self._tiers[:place]:
                    self._write(faster, name, data)
                return data, tier.medium
        return None

    def write(self, name: Named, data: bytes) -> None:
        """Keep a block in every tier."""
        kept = [self._write(tier, name, data) for tier in self._tiers]  # by each of them
        self.written += any(kept)

    def _write(self, tier: Tier, name: Named, data: bytes) -> bool:
        kept = tier.write(name, data, self._teller(tier))
        if kept:
            self._changes.append(Change(True, tier.medium, name.block, name.parent))
        return kept

    def _teller(self, tier: Tier) -> Removed:
        return lambda block: self._changes.append(Change(False, tier.medium, block, None))
