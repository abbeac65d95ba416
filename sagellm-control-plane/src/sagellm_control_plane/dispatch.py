"""Who goes where: gives waiting requests their engines. Synchronous; what it decides is carried out by those who wait.

Knows nothing of how engines are reached.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence

from sagellm_protocol import ErrorCode, SageLLMError
from sagellm_protocol.features import refuse_unknown

from .fleet import Fleet, Member
from .policies import Policy, Preference, Scene
from .routing import Cheapest, LowestLatency, Router
from .ticket import Stage, Ticket
from .waiting import WaitQueue


class Dispatcher:
    """Joins the queue and the fleet by a policy and a router.

    Args:
        fleet: The engines.
        policy: Orders what waits.
        router: Chooses where the policy does not mind.
        clock: Monotonic seconds.
        rng: The only source of chance.
    """

    def __init__(
        self, fleet: Fleet, policy: Policy, router: Router, clock: Callable[[], float], rng: random.Random
    ) -> None:
        self.queue = WaitQueue(policy)
        self.router = router
        self.placed = 0
        """Requests that have an engine."""
        self.placements = 0
        """Requests that were ever given one, each time counted."""
        self.deciding_s = 0.0
        """Time spent in rounds that gave out at least one."""
        self.longest_queue = 0
        self.arrivals = 0
        self.queue_seen = 0
        """Lengths of the queue as each arrival found it, summed."""
        self._fleet = fleet
        self._clock = clock
        self._rng = rng
        self._preferred: dict[Preference, Router] = {Preference.LATENCY: LowestLatency(), Preference.COST: Cheapest()}

    def enqueue(self, ticket: Ticket) -> None:
        """Let a request wait for its turn, and place what can be placed.

        Raises:
            SageLLMError: Nothing here can serve it, now or before long.
        """
        self._check_hope(ticket)
        ticket.stage = Stage.QUEUED
        ticket.turn = asyncio.get_running_loop().create_future()
        self.arrivals += 1
        self.queue_seen += len(self.queue)
        self.queue.add(ticket, self._scene())
        self.pump()

    def withdraw(self, ticket: Ticket) -> None:
        """Take a request out of the queue and off its engine, wherever it is, and let others move up."""
        self.queue.remove(ticket)
        member = ticket.member
        if member is None:
            return
        member.load.leave(ticket.sequences, ticket.placed_tokens, ticket.produced_tokens, ticket.begun, self._clock())
        del member.tickets[ticket.number]
        if not member.tickets:
            member.emptied.set()
        ticket.member, ticket.begun, ticket.produced_tokens = None, False, 0
        self.placed -= 1
        self.pump()

    def pump(self) -> None:
        """Place what can be placed. Call after room was made or an engine became ready."""
        if not self.queue:
            return
        began, before = self._clock(), self.placements
        self.longest_queue = max(self.longest_queue, len(self.queue))
        scene = self._scene()
        self.queue.place(scene, self._room, lambda ticket: self._place(ticket, scene))
        if self.placements > before:
            self.deciding_s += self._clock() - began

    def fleet_changed(self) -> None:
        """Refuse those waiting that no engine can serve any more, and place what can be placed."""
        for ticket in self.queue:
            try:
                self._check_hope(ticket)
            except SageLLMError as error:
                self.queue.remove(ticket)
                ticket.interrupt(error, final=False)
        self.pump()

    def free_places(self, name: str) -> int:
        """Sequences that the engines of a model could take now."""
        ready = (member for member in self._fleet.serving(name) if member.ready)
        return sum(max(0, member.capacity - member.load.sequences) for member in ready)

    def reason(self) -> str:
        """The order in force, and why."""
        return self.queue.policy.reason(self._scene())

    def use(self, policy: Policy) -> None:
        """Order by another policy from now on."""
        self.queue.reorder(policy, self._scene())

    def _check_hope(self, ticket: Ticket) -> None:
        serving = self._fleet.serving(ticket.request.model)
        if not any(member.hopeful and member.could_serve(ticket) for member in serving):
            raise why_not(ticket, serving, self._fleet.names())

    def _scene(self) -> Scene:
        if self.queue.policy.timeless:
            return Scene(self._clock())
        ready = [member for member in self._fleet if member.ready]
        loads = [member.load.sequences / member.capacity for member in ready]
        return Scene(
            now=self._clock(),
            mean_load=sum(loads) / len(loads) if loads else 0.0,
            urgent_waiting=any(ticket.priority < 0 for ticket in self.queue),
            deadlines_waiting=any(ticket.deadline is not None for ticket in self.queue),
        )

    def _room(self, name: str) -> bool:
        return any(member.has_room(1) and member.ready for member in self._fleet.serving(name))

    def _place(self, ticket: Ticket, scene: Scene) -> bool:
        if ticket.turn is None or ticket.turn.done():
            return False
        free = [
            member
            for member in self._fleet.serving(ticket.request.model)
            if member.has_room(ticket.sequences) and member.could_serve(ticket) and member.ready
        ]
        if not free:
            return False
        trusted = [member for member in free if not member.suspect] or free
        member = self._choose(ticket, trusted, scene)
        ticket.member, ticket.stage, ticket.placed_tokens = member, Stage.RUNNING, ticket.prompt_tokens
        ticket.placed_at, ticket.served_by = scene.now, member.engine_id
        member.tickets[ticket.number] = ticket
        member.emptied.clear()
        member.load.place(ticket.sequences, ticket.placed_tokens, scene.now)
        self.placed += 1
        self.placements += 1
        ticket.turn.set_result(member)
        return True

    def _choose(self, ticket: Ticket, free: Sequence[Member], scene: Scene) -> Member:
        for member in free:
            if member.engine_id == ticket.hints.prefer_engine:
                return member
        router = self._preferred.get(self.queue.policy.preference(ticket, scene), self.router)
        return router.choose(ticket, free, scene.now, self._rng)


def why_not(ticket: Ticket, serving: Sequence[Member], names: Sequence[str]) -> SageLLMError:
    """The reason why none of ``serving`` can take a request, as its caller should read it.

    Args:
        ticket: The request.
        serving: Engines that serve the model it names.
        names: All models that can be asked for.
    """
    request = ticket.request
    if not serving:
        known = ", ".join(names) or "none, because no engine runs"
        return SageLLMError(ErrorCode.MODEL_NOT_FOUND, f"no model {request.model!r} here; models: {known}", "model")
    ready = [member for member in serving if member.ready]
    if ready and not any(ticket.features <= member.capabilities.features for member in ready):
        try:
            refuse_unknown(request, frozenset[str]().union(*(member.capabilities.features for member in ready)))
        except SageLLMError as error:
            return error
        return SageLLMError(
            ErrorCode.UNSUPPORTED,
            f"no single engine of {request.model!r} offers all of {', '.join(sorted(ticket.features))}",
        )
    longest = max((member.capabilities.max_model_len or math.inf for member in ready), default=math.inf)
    if ticket.needed_tokens > longest:
        return SageLLMError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"the prompt's {ticket.prompt_tokens} tokens and {ticket.needed_tokens - ticket.prompt_tokens} of output"
            f" exceed the context of {request.model!r}, {longest:.0f} tokens; shorten either",
            "sampling.max_tokens",
        )
    states = "; ".join(
        f"{member.engine_id} is {member.info.state.value}" + (f" ({member.info.error})" if member.info.error else "")
        for member in serving
    )
    return SageLLMError(ErrorCode.UNAVAILABLE, f"no engine can serve {request.model!r} now: {states}")
