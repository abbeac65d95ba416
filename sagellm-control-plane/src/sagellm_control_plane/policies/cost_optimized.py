"""Cheap work on cheap engines: by priority, then by what the caller is willing to pay."""

from __future__ import annotations

import math

from sagellm_control_plane.observing import Subject

from .base import Key, Policy, Preference, Scene


class CostOptimized(Policy):
    """Priority, then the smaller budget, then arrival; every request goes to the cheapest engine."""

    def key(self, request: Subject, scene: Scene) -> Key:
        """Requests without a budget come after those with one."""
        budget = math.inf if request.cost_budget is None else request.cost_budget
        return (request.priority, budget, request.number)

    def preference(self, request: Subject, scene: Scene) -> Preference:
        """Always the cheapest."""
        return Preference.COST

    def reason(self, scene: Scene) -> str:
        """Always the same."""
        return "cost_optimized: by priority and budget, on the cheapest engine"
