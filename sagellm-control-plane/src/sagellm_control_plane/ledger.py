"""Who is in flight, and how those who are not ended: every accepted request ends exactly once, and counts add up.

Knows nothing of engines or queues.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from sagellm_protocol import RequestEnding

from .outcomes import Outcomes
from .ticket import Stage, Ticket

WINDOW_S = 30.0
"""Span over which the rate of endings is measured."""
_KEPT = 4096


class Ledger:
    """Requests in flight by the id their caller gave them, and counters. An id may be in flight several times."""

    def __init__(self) -> None:
        self.accepted = 0
        self.refused_early = 0
        self.ended = dict.fromkeys(RequestEnding, 0)
        self.outcomes = Outcomes()
        self._by_id: dict[str, list[Ticket]] = {}
        self._in_flight: dict[int, Ticket] = {}
        self._recent: deque[float] = deque(maxlen=_KEPT)
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """Accepted and not ended."""
        return len(self._in_flight)

    def tickets(self) -> tuple[Ticket, ...]:
        """Those in flight."""
        return tuple(self._in_flight.values())

    def known_as(self, request_id: str) -> Iterable[Ticket]:
        """Those in flight whose caller uses this id."""
        return tuple(self._by_id.get(request_id, ()))

    def accept(self, ticket: Ticket) -> None:
        """Take a request in."""
        self.accepted += 1
        self._in_flight[ticket.number] = ticket
        self._by_id.setdefault(ticket.request.request_id, []).append(ticket)
        self._idle.clear()

    def end(self, ticket: Ticket, ending: RequestEnding, now: float) -> None:
        """Close a request. Later calls change nothing: the first ending stands."""
        if ticket.ending is not None:
            return
        ticket.ending, ticket.stage = ending, Stage.ENDED
        self.ended[ending] += 1
        self.outcomes.note(ticket, ending, now)
        self._recent.append(now)
        del self._in_flight[ticket.number]
        namesakes = self._by_id[ticket.request.request_id]
        namesakes.remove(ticket)
        if not namesakes:
            del self._by_id[ticket.request.request_id]
        if not self._in_flight:
            self._idle.set()

    async def idle(self) -> None:
        """Return once nothing is in flight."""
        await self._idle.wait()

    def retry_after_s(self, queued: int, now: float) -> float:
        """Seconds until the requests queued now will have been served, at the rate at which requests ended of late.

        Before anything has ended, as long as the oldest in flight has taken so far: it is no sooner than that.
        """
        while self._recent and self._recent[0] < now - WINDOW_S:
            self._recent.popleft()
        if self._recent:
            span = max(now - self._recent[0], 1e-3)
            return max(1.0, queued * span / len(self._recent))
        oldest = next(iter(self._in_flight.values()), None)
        return max(1.0, now - oldest.arrived) if oldest is not None else 1.0
