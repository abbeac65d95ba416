"""What a tier is: a bounded place for blocks' bytes, found by hash.

Knows no particular place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from sagellm_protocol.blocks import BlockHash

HOST = "host"
DISK = "disk"
"""Media, as :class:`sagellm_protocol.blocks.BlocksStored` names them."""

Removed = Callable[[BlockHash], None]
"""Is told of a block that a tier no longer has."""


class Named(NamedTuple):
    """A block, and the one before it; ``None`` where that is the root."""

    block: BlockHash
    parent: BlockHash | None


class Tier(Protocol):
    """Blocks by hash; given up are those used longest ago that no other one there follows.

    Written and read by one thread; asked by any.
    """

    medium: str

    def open(self, removed: Removed) -> None:
        """Learn what is there; called once, before anything is read or written."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes it holds, as far as it knows."""
        ...

    def __contains__(self, name: Named) -> bool:
        """Whether it has a block; quick, and true of one that turns out to be damaged or gone."""
        ...

    def read(self, name: Named) -> bytes | None:
        """A block's bytes, checked; ``None`` when they are not there, or not as they were written."""
        ...

    def write(self, name: Named, data: bytes, removed: Removed) -> bool:
        """Keep a block, at the expense of others.

        Returns:
            Whether it is kept, and was not before.
        """
        ...
