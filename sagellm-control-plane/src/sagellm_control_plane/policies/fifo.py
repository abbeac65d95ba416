"""First come, first served."""

from __future__ import annotations

from .base import Key, Preference, Scene, Waiting


class Fifo:
    """Order of arrival."""

    timeless = True

    def key(self, waiting: Waiting, scene: Scene) -> Key:
        """The number of arrival."""
        return (waiting.number,)

    def preference(self, waiting: Waiting, scene: Scene) -> Preference:
        """Always the router's choice."""
        return Preference.BALANCE

    def reason(self, scene: Scene) -> str:
        """Always the same."""
        return "fifo: order of arrival"
