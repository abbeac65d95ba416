"""Picks one of the other orders by what waits and how loaded the engines are."""

from __future__ import annotations

from collections.abc import Hashable

from sagellm_control_plane.observing import Subject

from .base import Key, Policy, Preference, Refusal, Scene
from .cost_optimized import CostOptimized
from .priority import Priority
from .slo_aware import SloAware

BUSY = 0.8
IDLE = 0.3


class Adaptive(Policy):
    """Priority while something urgent waits, cost while engines are idle, service levels otherwise."""

    reads_load = True

    def __init__(self) -> None:
        self._priority, self._slo, self._cost = Priority(), SloAware(), CostOptimized()

    def lane(self, request: Subject) -> Hashable:
        """A band a priority, whatever is in force."""
        return self._priority.lane(request)

    def rank(self, lane: Hashable, scene: Scene) -> Key:
        """The bands' order."""
        return self._priority.rank(lane, scene)

    def phase(self, scene: Scene) -> Hashable:
        """The order in force."""
        return self._choose(scene)[0]

    def key(self, request: Subject, scene: Scene) -> Key:
        """The key of the order in force, within the band."""
        return self._choose(scene)[0].key(request, scene)

    def admit(self, request: Subject, scene: Scene) -> Refusal | None:
        """Deadlines that cannot be met are refused whatever is in force."""
        return self._slo.admit(request, scene)

    def preference(self, request: Subject, scene: Scene) -> Preference:
        """That of the order in force."""
        return self._choose(scene)[0].preference(request, scene)

    def reason(self, scene: Scene) -> str:
        """Which order is in force, and why."""
        policy, why = self._choose(scene)
        return f"adaptive: {why}; {policy.reason(scene)}"

    def queued(self, request: Subject, now: float) -> None:
        """All learn, whichever is in force."""
        self._priority.queued(request, now)
        self._slo.queued(request, now)

    def dropped(self, request: Subject, now: float) -> None:
        """All learn, whichever is in force."""
        self._priority.dropped(request, now)
        self._slo.dropped(request, now)

    def placed(self, request: Subject, row: int, now: float) -> None:
        """All learn, whichever is in force."""
        self._priority.placed(request, row, now)
        self._slo.placed(request, row, now)

    def _choose(self, scene: Scene) -> tuple[Policy, str]:
        if scene.urgent_waiting:
            return self._priority, "an urgent request waits"
        if scene.deadlines_waiting and scene.mean_load > BUSY:
            return self._slo, f"deadlines wait and the mean load is {scene.mean_load:.2f}"
        if scene.mean_load < IDLE:
            return self._cost, f"the mean load is {scene.mean_load:.2f}"
        return self._slo, f"a usual mean load of {scene.mean_load:.2f}"
