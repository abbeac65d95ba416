"""How requests fared of late: one plain record each, and what follows from many.

Bounded: the newest records are kept. Knows nothing of why anything happened.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sagellm_protocol import RequestEnding

from .ticket import Ticket

KEPT = 2048


@dataclass(frozen=True)
class Outcome:
    """One request that is over. Times are seconds."""

    at: float
    """When it ended, on the plane's clock."""
    engine_id: str | None
    """The engine it was last given, if any."""
    ending: RequestEnding
    latency_s: float
    """Accepted to ended."""
    waited_s: float
    """Accepted to placed, or to ended if it never was."""
    first_output_s: float | None
    """Accepted to first output."""
    tokens: int
    """Output tokens delivered."""
    priority: int
    had_deadline: bool

    @property
    def missed(self) -> bool:
        """Whether it had a deadline and did not meet it."""
        return self.had_deadline and self.ending is RequestEnding.EXPIRED


class Outcomes:
    """The newest outcomes, oldest first."""

    def __init__(self) -> None:
        self._kept: deque[Outcome] = deque(maxlen=KEPT)

    def note(self, ticket: Ticket, ending: RequestEnding, now: float) -> None:
        """A request ended; its place on its engine is still its own."""
        first = ticket.first_output_at
        self._kept.append(
            Outcome(
                at=now,
                engine_id=ticket.served_by,
                ending=ending,
                latency_s=now - ticket.arrived,
                waited_s=(now if ticket.placed_at is None else ticket.placed_at) - ticket.arrived,
                first_output_s=None if first is None else first - ticket.arrived,
                tokens=ticket.acting.produced_tokens,
                priority=ticket.priority,
                had_deadline=ticket.deadline is not None,
            )
        )

    def of(self, engine_id: str | None = None) -> list[Outcome]:
        """All that are kept, or those of one engine."""
        return [outcome for outcome in self._kept if engine_id is None or outcome.engine_id == engine_id]


def percentile(values: Iterable[float], share: float) -> float | None:
    """Nearest-rank percentile; ``None`` of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; ``None`` of nothing."""
    return sum(values) / len(values) if values else None
