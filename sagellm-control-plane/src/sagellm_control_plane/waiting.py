"""The queue: requests that wait, in lanes by model and by the policy's own division, in the order of the policy.

Knows nothing of engines: whoever takes from it says what can be placed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from .observing import Subject
from .policies import Key, Policy, Scene

S = TypeVar("S", bound=Subject)
LaneKey = tuple[str, Hashable]
"""A model, and what the policy divides by."""


class Lane(Generic[S]):
    """Requests that keep their order among themselves: a heap."""

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, S]] = []
        self._members: dict[int, S] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[S]:
        return iter(self._members.values())

    def add(self, request: S, key: Key) -> None:
        """Let a request wait."""
        self._members[request.number] = request
        heapq.heappush(self._heap, (key, request.number, request))

    def remove(self, request: S) -> bool:
        """Take a request out; whether it waited. Its entry in the heap stays until it comes up or most are such."""
        if self._members.pop(request.number, None) is None:
            return False
        if len(self._heap) > 2 * len(self._members) + 64:
            self._heap = [entry for entry in self._heap if entry[1] in self._members]
            heapq.heapify(self._heap)
        return True

    def rekey(self, policy: Policy, scene: Scene) -> None:
        """Sort by the keys of now."""
        self._heap = [(policy.key(request, scene), request.number, request) for request in self]
        heapq.heapify(self._heap)

    def head(self) -> tuple[Key, int] | None:
        """Key of the next one, or ``None`` when none waits."""
        while self._heap and self._heap[0][1] not in self._members:
            heapq.heappop(self._heap)
        return self._heap[0][:2] if self._heap else None

    def pop(self) -> tuple[Key, int, S]:
        """Take the next one out of the order; it still waits until it is removed."""
        return heapq.heappop(self._heap)

    def put_back(self, entries: list[tuple[Key, int, S]]) -> None:
        """Undo :meth:`pop`."""
        for entry in entries:
            heapq.heappush(self._heap, entry)


class WaitQueue(Generic[S]):
    """All lanes, and the policy that orders them."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.urgent = 0
        """Requests of priority below zero that wait."""
        self.hurried = 0
        """Requests with a deadline that wait."""
        self.tokens = 0
        """Prompt tokens that wait."""
        self._lanes: dict[LaneKey, Lane[S]] = {}
        self._where: dict[int, tuple[LaneKey, int]] = {}
        self._phase: Hashable = None

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[S]:
        return (request for lane in tuple(self._lanes.values()) for request in tuple(lane))

    def __contains__(self, request: S) -> bool:
        return request.number in self._where

    def add(self, request: S, scene: Scene) -> None:
        """Let a request wait for its model."""
        where = (request.model, self.policy.lane(request))
        self._lanes.setdefault(where, Lane()).add(request, self.policy.key(request, scene))
        self._where[request.number] = (where, request.prompt_tokens)
        self._count(request, 1, request.prompt_tokens)

    def remove(self, request: S) -> bool:
        """Take a request out; whether it waited."""
        found = self._where.pop(request.number, None)
        if found is None:
            return False
        where, tokens = found
        lane = self._lanes[where]
        lane.remove(request)
        self._count(request, -1, -tokens)
        if not lane:
            del self._lanes[where]
        return True

    def reorder(self, policy: Policy, scene: Scene) -> None:
        """Go on under another policy."""
        waiting = sorted(self, key=lambda request: request.number)
        self.policy, self._phase = policy, policy.phase(scene)
        self._lanes = {}
        for request in waiting:
            where = (request.model, policy.lane(request))
            self._where[request.number] = (where, self._where[request.number][1])
            self._lanes.setdefault(where, Lane()).add(request, policy.key(request, scene))

    def place(self, scene: Scene, room: Callable[[str], bool], place: Callable[[S], bool]) -> None:
        """Place what can be placed, in the policy's order over all lanes.

        A request that cannot be placed is passed over; its lane is left as soon as none of its engines has room.

        Args:
            scene: Of this round.
            room: Whether any engine of a model has room for anything.
            place: Books a place; whether it did. What it placed waits no longer.
        """
        phase = self.policy.phase(scene)
        if phase != self._phase:
            self._phase = phase
            for lane in self._lanes.values():
                lane.rekey(self.policy, scene)
        open_lanes = {where: lane for where, lane in self._lanes.items() if room(where[0])}
        passed: dict[LaneKey, list[tuple[Key, int, S]]] = {}
        while open_lanes:
            best = self._next(open_lanes, scene)
            if best is None:
                break
            entry = open_lanes[best].pop()
            if place(entry[2]):
                self.remove(entry[2])
            else:
                passed.setdefault(best, []).append(entry)
            if best not in self._lanes:
                del open_lanes[best]
            if open_lanes and not room(best[0]):
                open_lanes = {where: lane for where, lane in open_lanes.items() if where[0] != best[0]}
        for where, entries in passed.items():
            if where in self._lanes:
                self._lanes[where].put_back(entries)

    def _next(self, lanes: dict[LaneKey, Lane[S]], scene: Scene) -> LaneKey | None:
        """The lane whose head is served next: by rank of the lane, then by key, then by arrival."""
        best: tuple[Key, Key, int] | None = None
        found: LaneKey | None = None
        for where, lane in lanes.items():
            head = lane.head()
            if head is None:
                continue
            order = (self.policy.rank(where[1], scene), *head)
            if best is None or order < best:
                best, found = order, where
        return found

    def _count(self, request: S, by: int, tokens: int) -> None:
        self.urgent += by * (request.priority < 0)
        self.hurried += by * (request.deadline is not None)
        self.tokens += tokens
