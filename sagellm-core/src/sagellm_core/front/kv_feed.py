"""The front's feed of what the core's prefix cache holds, to whoever wants to route by it.

Knows nothing of transports.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence

from sagellm_core.core.kv_log import KVChange
from sagellm_protocol.blocks import BlocksCleared, BlocksRemoved, BlocksStored, KVEvent, KVEventBatch

KEPT_BATCHES = 1024
"""Batches kept for a reader; one that falls further behind loses some, and sees it by the gap in their numbers."""


class KVFeed:
    """Batches of one core's life, to any number of readers.

    Args:
        engine_id: Of the engine.
    """

    def __init__(self, engine_id: str) -> None:
        self._engine_id = engine_id
        self._epoch = uuid.uuid4().hex
        self._readers: set[asyncio.Queue[KVEventBatch | None]] = set()

    @property
    def wanted(self) -> bool:
        """Whether anybody reads."""
        return bool(self._readers)

    def subscribe(self) -> AsyncGenerator[KVEventBatch, None]:
        """Batches from this call on, until the feed is closed."""
        queue: asyncio.Queue[KVEventBatch | None] = asyncio.Queue()
        self._readers.add(queue)
        return self._read(queue)

    def publish(self, number: int, changes: Sequence[KVChange], block_size: int) -> None:
        """Tell every reader what one step changed."""
        events = tuple(_event(change, block_size) for change in changes)
        batch = KVEventBatch(engine_id=self._engine_id, epoch=self._epoch, sequence=number, events=events)
        for queue in self._readers:
            if queue.qsize() < KEPT_BATCHES:
                queue.put_nowait(batch)

    def close(self) -> None:
        """End every reader's stream once it has read what it was given; what comes after is of another epoch."""
        for queue in self._readers:
            queue.put_nowait(None)
        self._readers.clear()
        self._epoch = uuid.uuid4().hex

    async def _read(self, queue: asyncio.Queue[KVEventBatch | None]) -> AsyncGenerator[KVEventBatch, None]:
        try:
            while (batch := await queue.get()) is not None:
                yield batch
        finally:
            self._readers.discard(queue)


def _event(change: KVChange, block_size: int) -> KVEvent:
    blocks = tuple(change.blocks)
    if change.cleared:
        return BlocksCleared()
    if change.stored:
        return BlocksStored(block_hashes=blocks, parent=change.parent, block_size=block_size, medium=change.medium)
    return BlocksRemoved(block_hashes=blocks, medium=change.medium)
