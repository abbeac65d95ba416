"""The order in which waiting requests are served, as a function of plain values.

Knows nothing of engines, tokens' meaning or time's source: what it needs is in the arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

Key = tuple[float, ...]
"""Sorts waiting requests; the smallest is served first."""


class Waiting(Protocol):
    """A request that waits, as a policy sees it. Times are seconds of one monotonic clock."""

    @property
    def number(self) -> int:
        """Order of arrival; unique."""
        ...

    @property
    def arrived(self) -> float:
        """When it was accepted."""
        ...

    @property
    def deadline(self) -> float | None:
        """When it expires."""
        ...

    @property
    def priority(self) -> int:
        """Lower is sooner; below zero is more urgent than usual."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Tokens of its prompt, estimated where they cannot be known."""
        ...

    @property
    def cost_budget(self) -> float | None:
        """What the caller is willing to pay, in the currency of the price an hour."""
        ...


@dataclass(frozen=True)
class Scene:
    """What surrounds one round of decisions."""

    now: float
    """Monotonic seconds."""
    mean_load: float = 0.0
    """Mean over the ready engines of sequences held over sequences that fit; may pass 1."""
    urgent_waiting: bool = False
    """Whether a request of priority below zero waits."""
    deadlines_waiting: bool = False


class Preference(Enum):
    """What matters when an engine is chosen for a request."""

    BALANCE = "balance"
    """Leave it to the router."""
    LATENCY = "latency"
    COST = "cost"


@runtime_checkable
class Policy(Protocol):
    """An order of service, made without arguments: by a line of our table or an entry point of ``sagellm.policies``."""

    @property
    def timeless(self) -> bool:
        """Whether keys depend on the request alone, so that they need not be computed anew each round."""
        ...

    def key(self, waiting: Waiting, scene: Scene) -> Key:
        """Sort key of a request. Ties are broken by order of arrival."""
        ...

    def preference(self, waiting: Waiting, scene: Scene) -> Preference:
        """What matters in choosing its engine."""
        ...

    def reason(self, scene: Scene) -> str:
        """The order in force and why, for people who look into a decision."""
        ...
