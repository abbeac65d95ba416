"""The more important first, in bands, none of which is kept waiting for ever."""

from __future__ import annotations

from collections.abc import Hashable

from sagellm_control_plane.observing import Subject

from .base import Key, Policy, Preference, Scene

PATIENCE_S = 60.0
"""Waiting this long is worth one step of priority."""
STEPS = 4
"""Steps that waiting may gain at most: beyond them importance cannot be outwaited."""


class Priority(Policy):
    """Bands of priority; urgent requests go where latency is lowest.

    A band rises one step for each ``patience_s`` that its head has waited, by at most ``steps``. So a request of
    priority ``p`` is overtaken only by those that arrive within ``steps`` x ``patience_s`` of it, unless they are more
    than ``steps`` above it. Within a band the older is first.

    Args:
        patience_s: Seconds for a step.
        steps: Steps at most; 0 keeps strictly to priority, and the least important may then starve.
    """

    def __init__(self, patience_s: float = PATIENCE_S, steps: int = STEPS) -> None:
        self._patience_s, self._steps = patience_s, steps
        self._waiting: dict[int, dict[int, float]] = {}

    def lane(self, request: Subject) -> Hashable:
        """A band a priority."""
        return request.priority

    def queued(self, request: Subject, now: float) -> None:
        """Note since when it waits."""
        self._waiting.setdefault(request.priority, {})[request.number] = request.arrived

    def dropped(self, request: Subject, now: float) -> None:
        """It waits no longer."""
        self._forget(request)

    def placed(self, request: Subject, row: int, now: float) -> None:
        """It waits no longer."""
        self._forget(request)

    def rank(self, lane: Hashable, scene: Scene) -> Key:
        """Priority less the steps that the band's head has earned; of equals the more important first."""
        assert isinstance(lane, int)
        band = self._waiting.get(lane)
        waited = scene.now - next(iter(band.values())) if band else 0.0
        return (lane - min(self._steps, int(waited / self._patience_s)), lane)

    def key(self, request: Subject, scene: Scene) -> Key:
        """Order of arrival."""
        return (request.number,)

    def preference(self, request: Subject, scene: Scene) -> Preference:
        """Latency for a priority below zero."""
        return Preference.LATENCY if request.priority < 0 else Preference.BALANCE

    def reason(self, scene: Scene) -> str:
        """Always the same."""
        return "priority: most important first, waiting counted in its favour, then order of arrival"

    def _forget(self, request: Subject) -> None:
        band = self._waiting.get(request.priority)
        if band is not None:
            band.pop(request.number, None)
            if not band:
                del self._waiting[request.priority]
