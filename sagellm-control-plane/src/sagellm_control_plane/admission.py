"""Taking requests in, or refusing them at once: what cannot be served, what is too much, and when to come back.

Knows nothing of how a request then goes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from sagellm_protocol import ErrorCode, SageLLMError
from sagellm_protocol.features import features_of

from .dispatch import Dispatcher, why_not
from .fleet import Fleet, Member
from .ledger import Ledger
from .ticket import AnyRequest, Hints, Ticket, estimated_tokens


class Admission:
    """The door of a plane.

    Args:
        fleet: The engines.
        dispatcher: Knows what waits and what has a place.
        ledger: Counts who comes in.
        max_queued: Requests that may wait.
        clock: Monotonic seconds.
        resolve: Gives the model that a name in a request stands for.
    """

    def __init__(
        self,
        fleet: Fleet,
        dispatcher: Dispatcher,
        ledger: Ledger,
        max_queued: int,
        clock: Callable[[], float],
        resolve: Callable[[str], str],
    ) -> None:
        self._resolve = resolve
        self.closed = False
        """Whether the plane is shutting down."""
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._ledger = ledger
        self._max_queued = max_queued
        self._clock = clock
        self._numbers = itertools.count(1)

    @property
    def waiting(self) -> int:
        """Accepted requests without an engine: those being rendered will want a place too."""
        return self._ledger.in_flight - self._dispatcher.placed

    def accept(self, request: AnyRequest, hints: Hints) -> Ticket:
        """Take a request in, to be run at once by whoever called.

        Raises:
            SageLLMError: It is refused before it counts.
        """
        try:
            ticket = self.ticket(request, hints)
            if not self._await_first(request.model):
                self.askable(ticket, patient=True)
            waiting = self.waiting
            if waiting >= self._max_queued + self._dispatcher.free_places(ticket.request.model):
                raise SageLLMError(
                    ErrorCode.QUEUE_FULL,
                    f"{waiting} requests wait already, the most that may (max_queued={self._max_queued});"
                    " try again later",
                    retry_after_s=self.retry_after_s(),
                )
        except SageLLMError:
            self._ledger.refused_early += 1
            raise
        self._ledger.accept(ticket)
        return ticket

    def _await_first(self, model: str) -> bool:
        """Whether a request is to wait for the first engine of its model; raises when as many wait as may."""
        reserve = self._fleet.reserve
        return not self.closed and reserve is not None and reserve.admit(model)

    def retry_after_s(self) -> float:
        """Seconds until what waits now will have been served, as far as can be told."""
        return round(self._ledger.retry_after_s(self.waiting, self._clock()), 1)

    def ticket(self, request: AnyRequest, hints: Hints) -> Ticket:
        """A request as the plane keeps it; it does not count yet."""
        model = self._resolve(request.model)
        if model != request.model:
            request = request.model_copy(update={"model": model})
        now = self._clock()
        allowed_ms = request.slo.deadline_ms if request.slo is not None else None
        if request.adapter is None and self._fleet.adapter(request.model):
            # Said in the field of its own, too: engines and routers need not know which names are adapters.
            request = request.model_copy(update={"adapter": request.model})
        return Ticket(
            number=next(self._numbers),
            request=request,
            arrived=now,
            deadline=None if allowed_ms is None else now + allowed_ms / 1000,
            features=frozenset(features_of(request)),
            hints=hints,
            prompt_tokens=estimated_tokens(request),
        )

    def askable(self, ticket: Ticket, *, patient: bool = False) -> tuple[Member, ...]:
        """Engines that could take a request now, room aside.

        Args:
            ticket: The request.
            patient: Whether it may wait for an engine that died and is being started anew, or for the first of a model
                that gets one when it is asked for; then there may be none.

        Raises:
            SageLLMError: There is none, and none to wait for.
        """
        if self.closed:
            raise SageLLMError(ErrorCode.UNAVAILABLE, "the control plane is shutting down")
        serving = self._fleet.serving(ticket.request.model)
        able = tuple(member for member in serving if member.ready and member.could_serve(ticket))
        hope = any(member.restarting and member.could_serve(ticket) for member in serving)
        if not able and not (patient and (hope or self._fleet.promised(ticket.request.model))):
            reserve = self._fleet.reserve
            raise (reserve and reserve.refusal(ticket.request.model)) or why_not(ticket, serving, self._fleet.names())
        return able
