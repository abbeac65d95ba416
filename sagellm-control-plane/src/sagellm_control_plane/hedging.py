"""A second engine for a request whose first is slow to begin: whichever gives output first answers, the other stops.

J. Dean and L. A. Barroso, "The Tail at Scale" (2013): asked only after a high percentile of the usual delay, the second
costs few requests' work and cuts the tail. Knows nothing of queues: there is a second engine only if one has room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable

import anyio

from sagellm_protocol import DeltaEvent, ErrorEvent, StreamEvent, is_terminal

from .background import Background
from .dispatch import Dispatcher
from .fleet import Member
from .outcomes import percentile
from .ticket import Ticket

Relay = Callable[[Ticket, Member], AsyncGenerator[StreamEvent, None]]
LEAST_KNOWN = 20
"""Requests of a model that must have begun before anything is said of how long that takes."""
_KEPT = 256
_RENEWED = 16


class Delays:
    """Times to the first output of late, by model.

    Args:
        share: The percentile that counts as slow, 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._newest: dict[str, deque[float]] = {}
        self._slow: dict[str, tuple[int, float]] = {}

    def note(self, model: str, seconds: float) -> None:
        """A request began after so long."""
        self._newest.setdefault(model, deque(maxlen=_KEPT)).append(seconds)
        left, _ = self._slow.get(model, (0, 0.0))
        if left > 1:
            self._slow[model] = (left - 1, self._slow[model][1])
        else:
            self._slow.pop(model, None)

    def slow_s(self, model: str) -> float | None:
        """Time after which a request counts as slow to begin; ``None`` while too few have."""
        newest = self._newest.get(model, ())
        if len(newest) < LEAST_KNOWN:
            return None
        if model not in self._slow:
            found = percentile(newest, self._share)
            assert found is not None
            # Computed anew only now and then: what is asked for each request must not cost a sort.
            self._slow[model] = (_RENEWED, found)
        return self._slow[model][1]


class Hedger:
    """Runs attempts, and second ones beside them.

    Args:
        share: The percentile of delays after which a second engine is asked.
        dispatcher: Finds it.
        relay: Makes one attempt.
        background: Where losers are let go of: an engine that hangs must not hold up the winner.
        failed: Told of attempts that failed while another went on: the request, its twin if that is whose it was.
    """

    def __init__(
        self,
        share: float,
        dispatcher: Dispatcher,
        relay: Relay,
        background: Background,
        failed: Callable[[Ticket, Ticket, Member, ErrorEvent], None],
    ) -> None:
        self.delays = Delays(share)
        self.hedged = 0
        self.won = 0
        self._dispatcher = dispatcher
        self._relay = relay
        self._background = background
        self._failed = failed

    async def attempt(self, ticket: Ticket, member: Member) -> AsyncGenerator[StreamEvent, None]:
        """As one attempt; ``ticket.acting`` has the place from which its output comes."""
        began = asyncio.get_running_loop().time()
        heads = [_Head(self._relay(ticket, member), ticket, member)]
        try:
            slow_s = self.delays.slow_s(ticket.model)
            if slow_s is not None:
                await asyncio.wait([heads[0].task], timeout=slow_s)
                if not heads[0].task.done():
                    heads += self._second(ticket)
            winner = await _first(heads)
            winner.task.result()
            if isinstance(winner.events[-1], DeltaEvent):
                self.delays.note(ticket.model, asyncio.get_running_loop().time() - began)
            for loser in [head for head in heads if head is not winner]:
                heads.remove(loser)
                self._drop(loser, ticket, winner)
            for event in winner.events:
                yield event
            if not is_terminal(winner.events[-1]):
                async for event in winner.source:
                    yield event
        finally:
            for head in heads:
                if head.ticket is not ticket and ticket.stand_in is not head.ticket:
                    self._dispatcher.withdraw(head.ticket)
                with anyio.CancelScope(shield=True):
                    await head.close()
            ticket.beside = None

    def _second(self, ticket: Ticket) -> list[_Head]:
        beside = ticket.twin()
        found = self._dispatcher.place_at_once(beside)
        if found is None:
            return []
        self.hedged += 1
        ticket.beside = beside
        return [_Head(self._relay(beside, found), beside, found)]

    def _drop(self, loser: _Head, ticket: Ticket, winner: _Head) -> None:
        if loser.task.done() and isinstance(error := loser.events[-1], ErrorEvent):
            self._failed(ticket, loser.ticket, loser.member, error)
        if winner.ticket is not ticket:
            self.won += 1
            self._dispatcher.stand_in(ticket, winner.ticket)
        else:
            self._dispatcher.withdraw(loser.ticket)
        ticket.beside = None
        self._background.spawn(loser.close(), f"let go of {loser.ticket.attempt_id}")


class _Head:
    """An attempt that runs by itself up to its first output or its end, and is then read like any other."""

    def __init__(self, source: AsyncGenerator[StreamEvent, None], ticket: Ticket, member: Member) -> None:
        self.ticket = ticket
        self.member = member
        self.events: list[StreamEvent] = []
        self.source = source
        """Read it on once :attr:`task` is done."""
        self.task = asyncio.get_running_loop().create_task(self._run())

    @property
    def answers(self) -> bool:
        """Whether it has run so far and did not fail."""
        return self.task.done() and bool(self.events) and not isinstance(self.events[-1], ErrorEvent)

    async def close(self) -> None:
        """Abort what it has not finished."""
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.source.aclose()

    async def _run(self) -> None:
        async for event in self.source:
            self.events.append(event)
            if isinstance(event, DeltaEvent) or is_terminal(event):
                return


async def _first(heads: list[_Head]) -> _Head:
    """The first that answers, or the oldest if none does."""
    pending = {head.task for head in heads}
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for head in heads:
            if head.answers:
                return head
    return heads[0]
