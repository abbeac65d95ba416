"""Requests for many models by groups of one model, so that engines change models seldom.

The plane's side of :mod:`sagellm_control_plane.pooling`: the order in which grouped first-come-first-served serves.
"""

from __future__ import annotations

from sagellm_control_plane.observing import Subject
from sagellm_control_plane.pooling import MOST_IN_GROUP

from .base import Key, Policy, Preference, Scene


class Aegaeon(Policy):
    """Groups of up to eight requests for one model, in the order in which they were opened (SOSP 2025).

    A request joins the open group of its model. A group that is full takes no more even while it is served, so that a
    popular model cannot keep others waiting. Requests of a group go to one engine while that has room.

    Args:
        most: Requests of a group.
    """

    def __init__(self, most: int = MOST_IN_GROUP) -> None:
        self._most = most
        self._opened = 0
        self._open: dict[str, tuple[int, int]] = {}
        self._group: dict[int, int] = {}
        self._left: dict[int, int] = {}

    def queued(self, request: Subject, now: float) -> None:
        """Let it join a group."""
        group, size = self._open.get(request.model, (0, self._most))
        if size >= self._most:
            self._opened += 1
            group, size = self._opened, 0
        self._open[request.model] = (group, size + 1)
        self._group[request.number] = group
        self._left[group] = self._left.get(group, 0) + 1

    def placed(self, request: Subject, row: int, now: float) -> None:
        """It waits no longer."""
        self._leave(request)

    def dropped(self, request: Subject, now: float) -> None:
        """It waits no longer."""
        self._leave(request)

    def key(self, request: Subject, scene: Scene) -> Key:
        """Its group, then arrival."""
        return (self._group[request.number], request.number)

    def preference(self, request: Subject, scene: Scene) -> Preference:
        """Where the one before went."""
        return Preference.TOGETHER

    def reason(self, scene: Scene) -> str:
        """Always the same."""
        return f"aegaeon: by groups of one model, {self._most} at most, in the order in which they were opened"

    def _leave(self, request: Subject) -> None:
        group = self._group.pop(request.number)
        self._left[group] -= 1
        if not self._left[group]:
            del self._left[group]
            # A group that has gone cannot be joined: its place in the order is past.
            if self._open.get(request.model, (0, 0))[0] == group:
                del self._open[request.model]
