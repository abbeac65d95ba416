"""Picks one of the other orders by what waits and how loaded the engines are."""

from __future__ import annotations

from .base import Key, Policy, Preference, Scene, Waiting
from .cost_optimized import CostOptimized
from .priority import Priority
from .slo_aware import SloAware

BUSY = 0.8
IDLE = 0.3


class Adaptive:
    """Priority while something urgent waits, cost while engines are idle, service levels otherwise."""

    timeless = False

    def __init__(self) -> None:
        self._priority, self._slo, self._cost = Priority(), SloAware(), CostOptimized()

    def key(self, waiting: Waiting, scene: Scene) -> Key:
        """Priority first whatever is in force, then that order's own key."""
        return (waiting.priority, *self._choose(scene)[0].key(waiting, scene))

    def preference(self, waiting: Waiting, scene: Scene) -> Preference:
        """That of the order in force."""
        return self._choose(scene)[0].preference(waiting, scene)

    def reason(self, scene: Scene) -> str:
        """Which order is in force, and why."""
        policy, why = self._choose(scene)
        return f"adaptive: {why}; {policy.reason(scene)}"

    def _choose(self, scene: Scene) -> tuple[Policy, str]:
        if scene.urgent_waiting:
            return self._priority, "an urgent request waits"
        if scene.deadlines_waiting and scene.mean_load > BUSY:
            return self._slo, f"deadlines wait and the mean load is {scene.mean_load:.2f}"
        if scene.mean_load < IDLE:
            return self._cost, f"the mean load is {scene.mean_load:.2f}"
        return self._slo, f"a usual mean load of {scene.mean_load:.2f}"
