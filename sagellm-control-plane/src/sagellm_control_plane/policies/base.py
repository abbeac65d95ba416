"""The order in which waiting requests are served, as a function of plain values.

Knows nothing of engines, tokens' meaning or time's source: what it needs is in the arguments, or was learned from what
it was told as an :class:`~sagellm_control_plane.observing.Observer`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum

from sagellm_control_plane.observing import Observer, Subject

Key = tuple[float, ...]
"""Sorts waiting requests; the smallest is served first."""


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
    waiting: int = 0
    """Requests that wait."""
    waiting_tokens: int = 0
    """Prompt tokens that wait."""


class Preference(Enum):
    """What matters when an engine is chosen for a request."""

    BALANCE = "balance"
    """Leave it to the router."""
    LATENCY = "latency"
    COST = "cost"
    TOGETHER = "together"
    """Where the one before it went, if there is room: they are computed in one batch."""


@dataclass(frozen=True)
class Refusal:
    """Why a request is not let in, and when to come back."""

    reason: str
    retry_after_s: float


class Policy(Observer):
    """An order of service, made without arguments: by a line of our table or an entry point of ``sagellm.policies``.

    Requests of one lane keep their order among themselves, by :meth:`key`; between lanes :meth:`rank` decides, read
    anew for each request that is served. One lane and no ranks is the usual case.
    """

    reads_load = False
    """Whether it looks at :attr:`Scene.mean_load`, which is otherwise not computed."""

    @abstractmethod
    def key(self, request: Subject, scene: Scene) -> Key:
        """Sort key of a request in its lane, smallest first. Ties are broken by order of arrival.

        It is computed once, and again when :meth:`phase` changes.
        """

    def lane(self, request: Subject) -> Hashable:
        """What divides those that wait."""
        return None

    def rank(self, lane: Hashable, scene: Scene) -> Key:
        """Sort key of a lane, smallest first. Lanes of equal rank are merged by the keys of their requests."""
        return ()

    def phase(self, scene: Scene) -> Hashable:
        """Keys hold while this stays equal.

        A policy whose keys move with time says ``scene.now``, and is sorted anew each round.
        """
        return None

    def admit(self, request: Subject, scene: Scene) -> Refusal | None:
        """A reason not to let a request wait at all."""
        return None

    def preference(self, request: Subject, scene: Scene) -> Preference:
        """What matters in choosing its engine."""
        return Preference.BALANCE

    @abstractmethod
    def reason(self, scene: Scene) -> str:
        """The order in force and why, for people who look into a decision."""
