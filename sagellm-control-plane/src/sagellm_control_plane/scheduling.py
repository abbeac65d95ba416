"""Rounds of decisions: what waits is given engines by a policy and a router, each decision seeing those before it.

The live plane and the simulator decide through this one class. Knows nothing of asyncio or of how engines are reached.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np

from .board import Board, Rows
from .observing import Observer, Observers, Subject
from .policies import Policy, Preference, Refusal, Scene
from .routing import Cheapest, LowestLatency, Router, able
from .waiting import WaitQueue

S = TypeVar("S", bound=Subject)
S_contra = TypeVar("S_contra", bound=Subject, contravariant=True)


class Candidates(Protocol[S_contra]):
    """What the engines are, to those who ask which of them could take a request."""

    def rows(self, model: str) -> Rows:
        """Engines that serve a name."""
        ...

    def able(self, request: S_contra, rows: Rows) -> Rows:
        """Those that offer what a request needs, room aside."""
        ...

    def sequences(self, request: S_contra) -> int:
        """Sequences that a request makes an engine run."""
        ...

    def wished(self, request: S_contra) -> int | None:
        """The engine that is to be preferred, whatever the router thinks."""
        ...


class Scheduler(Generic[S]):
    """Joins a queue and a board.

    Args:
        board: The engines.
        candidates: Who may serve what.
        policy: Orders what waits.
        router: Chooses where the policy does not mind.
        rng: The only source of chance.
    """

    def __init__(
        self, board: Board, candidates: Candidates[S], policy: Policy, router: Router, rng: random.Random
    ) -> None:
        self.board = board
        self.queue: WaitQueue[S] = WaitQueue(policy)
        self.router = router
        self._candidates = candidates
        self._rng = rng
        self._preferred: dict[Preference, Router] = {Preference.LATENCY: LowestLatency(), Preference.COST: Cheapest()}
        self._before: tuple[str, int] | None = None
        self._free: tuple[tuple[str, int], Rows] | None = None
        self._listeners: list[Observer] = []
        self.observers = self._observers()

    def use(self, policy: Policy, now: float) -> None:
        """Order by another policy from now on; it learns of those that wait, and of nothing before."""
        waiting = sorted(self.queue, key=lambda request: request.number)
        for request in waiting:
            policy.queued(request, now)
        self.queue.reorder(policy, self.scene(now, policy))
        self.observers = self._observers()

    def listen(self, observer: Observer) -> None:
        """Tell one more of what happens from now on."""
        self._listeners.append(observer)
        self.observers = self._observers()

    def unlisten(self, observer: Observer) -> None:
        """Tell it nothing any more."""
        self._listeners.remove(observer)
        self.observers = self._observers()

    def scene(self, now: float, policy: Policy | None = None) -> Scene:
        """What surrounds a decision now."""
        mean_load = 0.0
        if (policy or self.queue.policy).reads_load:
            ready = self.board.ready
            if ready.any():
                mean_load = float((self.board.sequences[ready] / self.board.capacity[ready]).mean())
        queue = self.queue
        return Scene(now, mean_load, queue.urgent > 0, queue.hurried > 0, len(queue), queue.tokens)

    def admit(self, request: S, now: float) -> Refusal | None:
        """The policy's reason not to let a request wait, if it has one."""
        return self.queue.policy.admit(request, self.scene(now))

    def enqueue(self, request: S, now: float) -> None:
        """Let a request wait for its turn."""
        self.observers.tell("queued", request, now)
        self.queue.add(request, self.scene(now))

    def drop(self, request: S, now: float) -> bool:
        """Let a request wait no longer; whether it did."""
        waited = self.queue.remove(request)
        if waited:
            self.observers.tell("dropped", request, now)
        return waited

    def round(self, now: float, book: Callable[[S, int], None]) -> None:
        """Place what can be placed.

        Args:
            now: Monotonic seconds.
            book: Carries a decision out: accounts for the request on the board's row.
        """
        if not self.queue:
            return
        scene = self.scene(now)
        self._free = None
        self.queue.place(scene, self.room, lambda request: self._place(request, scene, book))

    def place_at_once(self, request: S, now: float, book: Callable[[S, int], None]) -> bool:
        """Place a request that does not wait, if there is room; whether there was."""
        self.observers.tell("queued", request, now)
        placed = self._place(request, self.scene(now), book)
        if not placed:
            self.observers.tell("dropped", request, now)
        return placed

    def room(self, model: str) -> bool:
        """Whether any engine of a model takes one more sequence."""
        return bool(len(self._free_rows(model, 1)))

    def _free_rows(self, model: str, sequences: int) -> Rows:
        """Ready engines of a model with room; asked for twice a decision, and reckoned once."""
        asked = (model, sequences)
        if self._free is None or self._free[0] != asked:
            rows = self._candidates.rows(model)
            self._free = (asked, rows[self.board.ready[rows] & self.board.room(rows, sequences)])
        return self._free[1]

    def _place(self, request: S, scene: Scene, book: Callable[[S, int], None]) -> bool:
        board = self.board
        rows = self._free_rows(request.model, self._candidates.sequences(request))
        rows = self._candidates.able(request, rows)
        if board.divided:
            rows = able(board, rows, request.role)
        if not len(rows):
            return False
        trusted = rows[~board.suspect[rows]]
        row = self._choose(request, trusted if len(trusted) else rows, scene)
        book(request, row)
        self._free = None
        self._before = (request.model, row)
        self.observers.tell("placed", request, row, scene.now)
        return True

    def _choose(self, request: S, rows: Rows, scene: Scene) -> int:
        wished = self._candidates.wished(request)
        preference = self.queue.policy.preference(request, scene)
        if wished is None and preference is Preference.TOGETHER and self._before is not None:
            wished = self._before[1] if self._before[0] == request.model else None
        if wished is not None:
            at = int(np.searchsorted(rows, wished))
            if at < len(rows) and rows[at] == wished:
                return wished
        router = self._preferred.get(preference, self.router)
        return router.choose(request, self.board, rows, scene.now, self._rng)

    def _observers(self) -> Observers:
        return Observers([self.queue.policy, self.router, *self._listeners])
