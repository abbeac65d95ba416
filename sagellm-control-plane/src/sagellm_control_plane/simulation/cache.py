"""The blocks of one engine's cache: shared by prefix while used, kept for their content after, oldest first out.

Only prompts' full blocks have a name; what is past them and every answer belongs to its sequence alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence


class BlockCache:
    """Counts tokens; a block is used, cached or free, and the three always sum to the total.

    Args:
        total_tokens: That fit.
    """

    def __init__(self, total_tokens: int) -> None:
        self.total_tokens = total_tokens
        self.private_tokens = 0
        """Of sequences alone: ends of prompts, and answers."""
        self.shared_tokens = 0
        """Of named blocks in use."""
        self.cached_tokens = 0
        """Of named blocks that nobody uses."""
        self.evicted = 0
        self.touched: dict[Hashable, None] | None = None
        """Names that came or went since :meth:`take_changes`; ``None`` where nobody listens."""
        self._used: dict[Hashable, int] = {}
        self._idle: OrderedDict[Hashable, int] = OrderedDict()

    @property
    def used_tokens(self) -> int:
        """Held by sequences."""
        return self.private_tokens + self.shared_tokens

    @property
    def free_tokens(self) -> int:
        """Held by nobody, for whatever reason: what is cached can go."""
        return self.total_tokens - self.used_tokens

    def matched(self, blocks: Sequence[Hashable]) -> int:
        """How many blocks, from the first on, are here."""
        for count, block in enumerate(blocks):
            if block not in self._used and block not in self._idle:
                return count
        return len(blocks)

    def take(self, blocks: Sequence[Hashable], size: int, private: int) -> None:
        """Let a sequence use a prompt's blocks, those that were not here included, and tokens of its own."""
        used, idle = self._used, self._idle
        for block in blocks:
            count = used.get(block)
            if count is not None:
                used[block] = count + 1
                continue
            if idle.pop(block, None) is not None:
                self.cached_tokens -= size
            elif self.touched is not None:
                self.touched[block] = None
            used[block] = 1
            self.shared_tokens += size
        self.grow(private)

    def grow(self, tokens: int) -> None:
        """Sequences hold more tokens of their own; what nobody uses makes room."""
        self.private_tokens += tokens
        excess = self.used_tokens + self.cached_tokens - self.total_tokens
        while excess > 0 and self._idle:
            block, size = self._idle.popitem(last=False)
            if self.touched is not None:
                self.touched[block] = None
            self.cached_tokens -= size
            self.evicted += 1
            excess -= size

    def take_changes(self) -> tuple[tuple[Hashable, ...], tuple[Hashable, ...]]:
        """Names that are here and names that are not, of those that changed since the last call."""
        names = tuple(self.touched or ())
        self.touched = {}
        here = [name in self._used or name in self._idle for name in names]
        stored = tuple(name for name, is_here in zip(names, here, strict=True) if is_here)
        return stored, tuple(name for name, is_here in zip(names, here, strict=True) if not is_here)

    def give_back(self, blocks: Sequence[Hashable], size: int, private: int) -> None:
        """A sequence is done; its named blocks stay, the last of them first to go."""
        self.private_tokens -= private
        used, idle = self._used, self._idle
        for block in reversed(blocks):
            count = used[block]
            if count > 1:
                used[block] = count - 1
                continue
            del used[block]
            idle[block] = size
            self.shared_tokens -= size
            self.cached_tokens += size
