"""Who goes where: gives waiting requests their engines. Synchronous; what it decides is carried out by those who wait.

Knows nothing of how engines are reached. Decisions are made in :mod:`.scheduling`; here they meet futures and members.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence

from sagellm_protocol import EngineState, ErrorCode, KVEventBatch, SageLLMError
from sagellm_protocol.features import refuse_unknown

from .circuit import CircuitState
from .fleet import Fleet, Member
from .observing import EngineWork
from .policies import Policy
from .routing import Router
from .scheduling import Scheduler
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
        self.scheduler: Scheduler[Ticket] = Scheduler(fleet.board, fleet, policy, router, rng)
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
        self._calls: list[Callable[[], None]] = []
        fleet.watched_by(self)

    @property
    def queue(self) -> WaitQueue[Ticket]:
        """What waits."""
        return self.scheduler.queue

    def enqueue(self, ticket: Ticket) -> None:
        """Let a request wait for its turn, and place what can be placed.

        Raises:
            SageLLMError: Nothing here can serve it, now or before long; ``QUEUE_FULL`` when the policy foresees that
                its deadline would pass.
        """
        self._check_hope(ticket)
        now = self._clock()
        refusal = self.scheduler.admit(ticket, now) if ticket.failed_attempts == 0 else None
        if refusal is not None:
            raise SageLLMError(ErrorCode.QUEUE_FULL, refusal.reason, retry_after_s=round(refusal.retry_after_s, 1))
        ticket.stage = Stage.QUEUED
        ticket.turn = asyncio.get_running_loop().create_future()
        self.arrivals += 1
        self.queue_seen += len(self.queue)
        self.scheduler.enqueue(ticket, now)
        self.pump()

    def withdraw(self, ticket: Ticket) -> None:
        """Take a request out of the queue and off its engine, wherever it is, and let others move up."""
        now = self._clock()
        if ticket.stand_in is not None:
            stand_in, ticket.stand_in = ticket.stand_in, None
            self.withdraw(stand_in)
        self.scheduler.drop(ticket, now)
        member = ticket.member
        if member is None:
            return
        member.load.leave(ticket.sequences, ticket.placed_tokens, ticket.produced_tokens, ticket.begun, now)
        del member.tickets[ticket.number]
        if member.circuit.probe == ticket.number:
            member.circuit.left(ticket.number)
            member.refresh()
        if not member.tickets:
            member.emptied.set()
        if member.row is not None:
            self.scheduler.observers.tell("left", ticket, member.row, now)
        ticket.member, ticket.begun, ticket.produced_tokens = None, False, 0
        self.placed -= ticket.counted
        self.pump()

    def place_at_once(self, ticket: Ticket) -> Member | None:
        """Give a request an engine if one has room now; it does not wait."""
        now = self._clock()
        ticket.turn = asyncio.get_running_loop().create_future()
        return ticket.turn.result() if self.scheduler.place_at_once(ticket, now, self._book) else None

    def stand_in(self, ticket: Ticket, twin: Ticket) -> None:
        """Let a twin's place be that of a request."""
        assert ticket.stand_in is None
        twin.counted = True
        self.placed += 1
        self.withdraw(ticket)
        ticket.stand_in = twin
        ticket.placed_at, ticket.served_by, ticket.first_output_at = (
            twin.placed_at,
            twin.served_by,
            twin.first_output_at,
        )

    def began(self, ticket: Ticket, member: Member, waited_s: float) -> None:
        """A request's answer has begun, so long after it was sent."""
        member.load.begin(ticket.placed_tokens, waited_s)
        if member.row is not None:
            self.scheduler.observers.tell("began", ticket, member.row, self._clock())

    def produced(self, ticket: Ticket, member: Member, tokens: int) -> None:
        """A request's answer has grown."""
        member.load.produce(tokens)
        if member.row is not None:
            for call in self.scheduler.observers.calls("produced"):
                call(ticket, member.row, tokens, self._clock())

    @property
    def wants_cache_events(self) -> bool:
        """Whether anyone learns from what engines tell of their caches."""
        return bool(self.scheduler.observers.calls("cache_changed"))

    def cache_changed(self, member: Member, batch: KVEventBatch) -> None:
        """An engine told what its prefix cache holds."""
        if member.row is not None:
            self.scheduler.observers.tell("cache_changed", member.row, batch)

    def measured(self, member: Member) -> None:
        """An engine was looked at: tell what it has done, by its own count where it has one."""
        load, stats = member.load, member.stats
        if member.row is None or stats is None:
            return
        prompt, output = stats.prompt_tokens, stats.generation_tokens
        work = EngineWork(
            busy_s=load.busy_s,
            prompt_tokens=load.computed if prompt is None else prompt,
            output_tokens=load.produced if output is None else output,
            steps=stats.steps,
        )
        self.scheduler.observers.tell("measured", member.row, work)

    def joined(self, row: int) -> None:
        """An engine took a row of the board."""
        self.scheduler.observers.tell("joined", row, self._fleet.board)

    def gone(self, row: int) -> None:
        """Its row was taken back."""
        self.scheduler.observers.tell("gone", row)

    def cache_lost(self, member: Member) -> None:
        """An engine will start anew with an empty cache."""
        if member.row is not None:
            self.scheduler.observers.tell("cache_lost", member.row)

    def pump(self) -> None:
        """Place what can be placed. Call after room was made or an engine became ready."""
        if not self.queue:
            return
        began, before = self._clock(), self.placements
        self.longest_queue = max(self.longest_queue, len(self.queue))
        self.scheduler.round(began, self._book)
        if self.placements > before:
            self.deciding_s += self._clock() - began

    def on_change(self, call: Callable[[], None]) -> None:
        """Have something called whenever engines come, go or change, before what waits is looked at."""
        self._calls.append(call)

    def fleet_changed(self) -> None:
        """Refuse those waiting that no engine can serve any more, and place what can be placed."""
        for call in self._calls:
            call()
        for ticket in self.queue:
            try:
                self._check_hope(ticket)
            except SageLLMError as error:
                self.scheduler.drop(ticket, self._clock())
                ticket.interrupt(error, final=False)
        self.pump()

    def free_places(self, name: str) -> int:
        """Sequences that the engines of a model could take now."""
        board, rows = self._fleet.board, self._fleet.rows(name)
        free = board.capacity[rows] - board.sequences[rows]
        return int(free[board.ready[rows] & (free > 0)].sum())

    def reason(self) -> str:
        """The order in force, and why."""
        return self.queue.policy.reason(self.scheduler.scene(self._clock()))

    def use(self, policy: Policy) -> None:
        """Order by another policy from now on."""
        for row in self._fleet.board.live_rows():
            policy.joined(row, self._fleet.board)
        self.scheduler.use(policy, self._clock())

    def _check_hope(self, ticket: Ticket) -> None:
        serving = self._fleet.serving(ticket.request.model)
        hope = any(member.hopeful and member.could_serve(ticket) for member in serving)
        if not hope and not self._fleet.promised(ticket.request.model):
            reserve = self._fleet.reserve
            raise (reserve and reserve.refusal(ticket.request.model)) or why_not(ticket, serving, self._fleet.names())

    def _book(self, ticket: Ticket, row: int) -> None:
        member, now = self._fleet.at(row), self._clock()
        assert ticket.turn is not None
        ticket.member, ticket.stage, ticket.placed_tokens = member, Stage.RUNNING, ticket.prompt_tokens
        ticket.placed_at, ticket.served_by = now, member.engine_id
        member.tickets[ticket.number] = ticket
        member.emptied.clear()
        if member.circuit.state is CircuitState.HALF_OPEN:
            member.circuit.sent(ticket.number)
            member.refresh()
        member.load.place(ticket.sequences, ticket.placed_tokens, now)
        self.placed += ticket.counted
        self.placements += 1
        ticket.turn.set_result(member)


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
    adapter = request.adapter
    if ready and adapter is not None and not any(adapter in member.adapters for member in ready):
        known = ", ".join(sorted(frozenset[str]().union(*(member.adapters for member in ready)))) or "none"
        if any("adapter" in member.capabilities.features for member in ready):
            return SageLLMError(
                ErrorCode.MODEL_NOT_FOUND,
                f"{request.model!r} has no adapter {adapter!r} here; adapters: {known}",
                "adapter",
            )
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
    asleep = any(member.told is EngineState.SLEEPING for member in serving)
    fix = "; wake it (POST /wake_up of a gateway)" if asleep else ""
    return SageLLMError(ErrorCode.UNAVAILABLE, f"no engine can serve {request.model!r} now: {states}{fix}")
