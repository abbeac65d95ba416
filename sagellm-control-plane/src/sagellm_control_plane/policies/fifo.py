"""First come, first served."""

from __future__ import annotations

from sagellm_control_plane.observing import Subject

from .base import Key, Policy, Scene


class Fifo(Policy):
    """Order of arrival."""

    def key(self, request: Subject, scene: Scene) -> Key:
        """The number of arrival."""
        return (request.number,)

    def reason(self, scene: Scene) -> str:
        """Always the same."""
        return "fifo: order of arrival"
