"""The nearer to its deadline, measured by the share of its time used up, the sooner."""

from __future__ import annotations

from .base import Key, Preference, Scene, Waiting

URGENT = 0.7
"""Share of the allowed time after which latency matters more than balance."""


def urgency(waiting: Waiting, now: float) -> float:
    """Share of its allowed time that a request has used: 0 without a deadline, 1 once it is missed."""
    if waiting.deadline is None:
        return 0.0
    allowed = waiting.deadline - waiting.arrived
    if allowed <= 0:
        return 1.0
    return min(1.0, max(0.0, (now - waiting.arrived) / allowed))


class SloAware:
    """Highest urgency first, then arrival. Without deadlines it is first come, first served."""

    timeless = False

    def key(self, waiting: Waiting, scene: Scene) -> Key:
        """Urgency, highest first."""
        return (-urgency(waiting, scene.now), waiting.number)

    def preference(self, waiting: Waiting, scene: Scene) -> Preference:
        """Latency once most of the allowed time is gone."""
        return Preference.LATENCY if urgency(waiting, scene.now) > URGENT else Preference.BALANCE

    def reason(self, scene: Scene) -> str:
        """Always the same."""
        return "slo_aware: most urgent first"
