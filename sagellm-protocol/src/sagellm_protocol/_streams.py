"""Streams between tasks of one event loop.

Knows nothing of what flows through them.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Subscription(Generic[T]):
    """One reader's view of a :class:`Broadcast`; an async iterator that ends when the broadcast is closed."""

    def __init__(self, readers: set[Subscription[T]], capacity: int) -> None:
        self._readers = readers
        self._items: asyncio.Queue[T | None] = asyncio.Queue(capacity + 1)
        self._capacity = capacity

    def __aiter__(self) -> Subscription[T]:
        return self

    async def __anext__(self) -> T:
        item = await self._items.get() if self in self._readers or not self._items.empty() else None
        if item is None:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """Read no more."""
        self._readers.discard(self)
        while not self._items.empty():
            self._items.get_nowait()

    def _put(self, item: T) -> None:
        if self._items.qsize() < self._capacity:
            self._items.put_nowait(item)

    def _end(self) -> None:
        self._items.put_nowait(None)


class Broadcast(Generic[T]):
    """Sends every item to every reader, from its subscription on; a reader that falls behind loses items.

    Args:
        capacity: Items kept for a reader.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._readers: set[Subscription[T]] = set()

    def subscribe(self) -> Subscription[T]:
        """A new reader; what is sent from now on is for it too."""
        reader = Subscription(self._readers, self._capacity)
        self._readers.add(reader)
        return reader

    def send(self, item: T) -> None:
        """Give an item to every reader that has room for it."""
        for reader in self._readers:
            reader._put(item)

    def close(self) -> None:
        """End every reader's stream once it has read what it was given."""
        for reader in self._readers:
            reader._end()
        self._readers.clear()
