"""Cheap work on cheap engines: by priority, then by what the caller is willing to pay."""

from __future__ import annotations

import math

from .base import Key, Preference, Scene, Waiting


class CostOptimized:
    """Priority, then the smaller budget, then arrival; every request goes to the cheapest engine."""

    timeless = True

    def key(self, waiting: Waiting, scene: Scene) -> Key:
        """Requests without a budget come after those with one."""
        budget = math.inf if waiting.cost_budget is None else waiting.cost_budget
        return (waiting.priority, budget, waiting.number)

    def preference(self, waiting: Waiting, scene: Scene) -> Preference:
        """Always the cheapest."""
        return Preference.COST

    def reason(self, scene: Scene) -> str:
        """Always the same."""
        return "cost_optimized: by priority and budget, on the cheapest engine"
