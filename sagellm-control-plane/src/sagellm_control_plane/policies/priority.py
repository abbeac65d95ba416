"""The more important first, and within one importance the older."""

from __future__ import annotations

from .base import Key, Preference, Scene, Waiting


class Priority:
    """Order of priority; urgent requests go where latency is lowest.

    Lower priorities starve while higher ones keep coming: limit who may use those.
    """

    timeless = True

    def key(self, waiting: Waiting, scene: Scene) -> Key:
        """Priority, then arrival."""
        return (waiting.priority, waiting.number)

    def preference(self, waiting: Waiting, scene: Scene) -> Preference:
        """Latency for a priority below zero."""
        return Preference.LATENCY if waiting.priority < 0 else Preference.BALANCE

    def reason(self, scene: Scene) -> str:
        """Always the same."""
        return "priority: most important first, then order of arrival"
