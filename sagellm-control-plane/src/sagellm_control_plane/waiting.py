"""The queue: requests that wait, by model, in the order of a policy.

Knows nothing of engines: whoever takes from it says what can be placed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from .policies import Key, Policy, Scene
from .ticket import Ticket

Place = Callable[[Ticket], bool]
"""Tries to place a request; whether it did."""


class Lane:
    """Requests that wait for one model.

    Under a timeless policy it is a heap; under another it is sorted anew each round, because keys move with time.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Key, int, Ticket]] = []
        self._members: dict[int, Ticket] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._members.values())

    def add(self, ticket: Ticket, key: Key) -> None:
        """Let a request wait."""
        self._members[ticket.number] = ticket
        heapq.heappush(self._heap, (key, ticket.number, ticket))

    def remove(self, ticket: Ticket) -> bool:
        """Take a request out; whether it waited. Its entry in the heap stays until it comes up or most are such."""
        if self._members.pop(ticket.number, None) is None:
            return False
        if len(self._heap) > 2 * len(self._members) + 64:
            self._heap = [entry for entry in self._heap if entry[1] in self._members]
            heapq.heapify(self._heap)
        return True

    def rekey(self, policy: Policy, scene: Scene) -> None:
        """Sort by the keys of now."""
        self._heap = [(policy.key(ticket, scene), ticket.number, ticket) for ticket in self]
        heapq.heapify(self._heap)

    def head(self) -> tuple[Key, int] | None:
        """Key of the next one, or ``None`` when none waits."""
        while self._heap and self._heap[0][1] not in self._members:
            heapq.heappop(self._heap)
        return self._heap[0][:2] if self._heap else None

    def pop(self) -> tuple[Key, int, Ticket]:
        """Take the next one out of the order; it still waits until it is removed."""
        return heapq.heappop(self._heap)

    def put_back(self, entries: list[tuple[Key, int, Ticket]]) -> None:
        """Undo :meth:`pop`."""
        for entry in entries:
            heapq.heappush(self._heap, entry)


class WaitQueue:
    """All lanes, and the policy that orders them."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._lanes: dict[str, Lane] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for lane in tuple(self._lanes.values()) for ticket in tuple(lane))

    def add(self, ticket: Ticket, scene: Scene) -> None:
        """Let a request wait for its model."""
        lane = self._lanes.setdefault(ticket.request.model, Lane())
        lane.add(ticket, self.policy.key(ticket, scene))
        self._size += 1

    def remove(self, ticket: Ticket) -> None:
        """Take a request out, if it waits."""
        lane = self._lanes.get(ticket.request.model)
        if lane is not None and lane.remove(ticket):
            self._size -= 1
            if not lane:
                del self._lanes[ticket.request.model]

    def reorder(self, policy: Policy, scene: Scene) -> None:
        """Go on under another policy."""
        self.policy = policy
        for lane in self._lanes.values():
            lane.rekey(policy, scene)

    def place(self, scene: Scene, room: Callable[[str], bool], place: Place) -> None:
        """Place what can be placed, in the policy's order over all lanes.

        A request that cannot be placed is passed over; its lane is left as soon as none of its engines has room.

        Args:
            scene: Of this round.
            room: Whether any engine of a model has room for anything.
            place: Books a place. What it placed waits no longer.
        """
        open_lanes = {name: lane for name, lane in self._lanes.items() if room(name)}
        if not self.policy.timeless:
            for lane in open_lanes.values():
                lane.rekey(self.policy, scene)
        passed: dict[str, list[tuple[Key, int, Ticket]]] = {}
        while open_lanes:
            heads = [(head, name) for name, lane in open_lanes.items() if (head := lane.head()) is not None]
            if not heads:
                break
            _, name = min(heads)
            entry = open_lanes[name].pop()
            if place(entry[2]):
                self.remove(entry[2])
            else:
                passed.setdefault(name, []).append(entry)
            for other in [other for other in open_lanes if not room(other) or other not in self._lanes]:
                del open_lanes[other]
        for name, entries in passed.items():
            if name in self._lanes:
                self._lanes[name].put_back(entries)
