"""What changed in the prefix cache since someone last looked; kept only once someone wants to know.

Knows block hashes; nothing of blocks, sequences or who listens.
"""

from __future__ import annotations

import msgspec

from sagellm_protocol.blocks import BlockHash

DEVICE = "device"


class KVChange(msgspec.Struct, array_like=True):
    """Blocks that can be found from now on, or no longer.

    Attributes:
        stored: Which of the two.
        blocks: Their hashes; those stored are a chain, in order.
        parent: For those stored, the hash before the first; ``None`` where that is the root.
        medium: Where they are, or were.
        cleared: Nothing of what was told before holds any more; the other fields say nothing.
    """

    stored: bool
    blocks: list[BlockHash]
    parent: BlockHash | None = None
    medium: str = DEVICE
    cleared: bool = False


class KVLog:
    """Gathers changes, consecutive ones of a kind together."""

    def __init__(self) -> None:
        self.watched = False
        self._changes: list[KVChange] = []

    def stored(self, block: BlockHash, parent: BlockHash | None, medium: str = DEVICE) -> None:
        """A block can be found from now on."""
        if not self.watched:
            return
        last = self._changes[-1] if self._changes else None
        if last is not None and last.stored and last.medium == medium and last.blocks[-1] == parent:
            last.blocks.append(block)
        else:
            self._changes.append(KVChange(True, [block], parent, medium))

    def removed(self, block: BlockHash, medium: str = DEVICE) -> None:
        """A block can no longer be found."""
        if not self.watched:
            return
        last = self._changes[-1] if self._changes else None
        if last is not None and not (last.stored or last.cleared) and last.medium == medium:
            last.blocks.append(block)
        else:
            self._changes.append(KVChange(False, [block], None, medium))

    def cleared(self) -> None:
        """Nothing can be found any more, of whatever was told."""
        self._changes = [KVChange(False, [], cleared=True)] if self.watched else []

    def take(self) -> list[KVChange]:
        """What changed since the last call."""
        changes, self._changes = self._changes, []
        return changes
