"""Time as something passed in, so that what waits can be tested without waiting.

Knows nothing of who waits for what.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol

_SETTLE_TURNS = 20
"""Turns of the event loop between two moments: a wake-up that passes through this many tasks arrives in time."""


class Clock(Protocol):
    """Monotonic seconds, and a way to let them pass."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return once ``seconds`` have passed; always lets other tasks run."""
        ...


class WallClock:
    """The time of the world."""

    def now(self) -> float:
        """Seconds of the system's monotonic clock."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait ``seconds`` of real time."""
        await asyncio.sleep(max(seconds, 0.0))


class VirtualClock:
    """Time that jumps to the next moment anybody waits for, as soon as everybody does.

    It jumps after the event loop has turned a fixed number of times without a new sleeper being due; tasks that wait
    for real input or output meanwhile are not seen, so it is for tests that do none.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._pump: asyncio.Task[None] | None = None

    def now(self) -> float:
        """Virtual seconds."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Wait ``seconds`` of virtual time."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), woken))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        await woken

    async def _run(self) -> None:
        while self._sleepers:
            for _ in range(_SETTLE_TURNS):
                await asyncio.sleep(0)
            due, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                self._now = due
                woken.set_result(None)
