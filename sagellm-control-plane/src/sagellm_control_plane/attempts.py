"""A request that was taken in: rendered, placed, relayed, and begun again elsewhere while that is allowed.

Knows nothing of how a request is counted or of what else is in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from sagellm_protocol import (
    DeltaEvent,
    EmbedRequest,
    EndEvent,
    ErrorCode,
    ErrorEvent,
    Request,
    SageLLMError,
    ScoreRequest,
    StreamEvent,
)
from sagellm_protocol.interfaces import Engine

from . import relay
from .admission import Admission
from .background import Background
from .breaking import Breakers
from .crew import Crew
from .dispatch import Dispatcher
from .fleet import Member
from .hedging import Hedger
from .rendering import RenderDesk
from .resuming import Diverged, Seam, repeatable
from .settings import PlaneSettings
from .ticket import Ticket

R = TypeVar("R", EmbedRequest, ScoreRequest)
T = TypeVar("T")


class Attempts:
    """Serves requests by as many attempts as it takes.

    Args:
        admission: Says which engines could take a request.
        dispatcher: Gives requests their engines.
        crew: Told of attempts that fail.
        breakers: Told of attempts that fail and of those that do not.
        desk: Renders prompts.
        background: Keeps what outlives a request.
        settings: Limits.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        admission: Admission,
        dispatcher: Dispatcher,
        crew: Crew,
        breakers: Breakers,
        desk: RenderDesk,
        background: Background,
        settings: PlaneSettings,
        clock: Callable[[], float],
    ) -> None:
        self._admission = admission
        self._dispatcher = dispatcher
        self._crew = crew
        self._breakers = breakers
        self._desk = desk
        self._settings = settings
        self._clock = clock
        self._retried = 0
        self._resumed = 0
        self.hedger = (
            Hedger(
                settings.hedge_percentile,
                dispatcher,
                self._relay,
                background,
                lambda ticket, acting, member, event: self._failed(
                    ticket, acting, member, SageLLMError.from_info(event.error)
                ),
            )
            if settings.hedge_percentile is not None
            else None
        )

    def counts(self) -> dict[str, int]:
        """Counters of :class:`~sagellm_protocol.PlaneStatus`."""
        hedger = self.hedger
        hedges = {"hedged": hedger.hedged, "hedges_won": hedger.won} if hedger is not None else {}
        return {"retried": self._retried, "resumed": self._resumed, **hedges}

    async def generate(self, ticket: Ticket) -> AsyncGenerator[StreamEvent, None]:
        """Render, wait, relay, and begin or go on with another engine while that is allowed."""
        seam = Seam(self._settings.resume and repeatable(ticket.request))
        failure: SageLLMError | None = None
        while True:
            try:
                member = await self._placed(ticket)
            except SageLLMError as error:
                self._dispatcher.withdraw(ticket)
                cause = _first_cause(failure, error)
                yield ErrorEvent(request_id=ticket.request.request_id, error=cause.info())
                return
            if failure is not None:
                self._count(ticket)
            before, failure = failure, None
            async with aclosing(self._attempt(ticket, member)) as events:
                async for event in events:
                    if isinstance(event, ErrorEvent):
                        cause = SageLLMError.from_info(event.error)
                        if self._try_again(ticket, member, cause, seam):
                            failure = cause
                            break
                    try:
                        told = seam.told(event)
                    except Diverged:
                        self._dispatcher.withdraw(ticket)
                        yield _diverged(ticket, before)
                        return
                    if told is not None:
                        self._note(ticket, told)
                        yield told
            if failure is None:
                return
            seam.begin_again()

    def _count(self, ticket: Ticket) -> None:
        """Another engine was found."""
        if ticket.delivered:
            self._resumed += 1
        else:
            self._retried += 1

    def _attempt(self, ticket: Ticket, member: Member) -> AsyncGenerator[StreamEvent, None]:
        if self.hedger is not None and not ticket.delivered:
            return self.hedger.attempt(ticket, member)
        return self._relay(ticket, member)

    def _relay(self, ticket: Ticket, member: Member) -> AsyncGenerator[StreamEvent, None]:
        return relay.generate(
            ticket, member, self._dispatcher, self._desk.prompt_for, self._clock, self._settings.abort_timeout_s
        )

    def _note(self, ticket: Ticket, event: StreamEvent) -> None:
        """What the caller is about to be told says something of the engine too."""
        if isinstance(event, DeltaEvent):
            if not ticket.delivered:
                ticket.delivered = True
                acting = ticket.acting
                if acting.member is not None:
                    self._breakers.began(acting.member, acting.number)
        elif isinstance(event, EndEvent) and (member := ticket.acting.member) is not None:
            self._breakers.succeeded(member, ticket.acting.number)

    async def call(self, ticket: Ticket, request: R, method: Callable[[Engine], Callable[[R], Awaitable[T]]]) -> T:
        """The answer of a request that has one.

        Raises:
            SageLLMError: As the last engine tried failed, or as the request was ended.
        """
        failure: SageLLMError | None = None
        request = request.model_copy(update={"model": ticket.request.model})
        while True:
            try:
                member = await self._placed(ticket)
            except SageLLMError as error:
                raise _first_cause(failure, error) from error
            if failure is not None:
                self._count(ticket)
            try:
                answer = await relay.call(ticket, member, request, method, self._clock())
            except SageLLMError as error:
                if not self._try_again(ticket, member, error):
                    raise
                failure = error
            else:
                self._breakers.succeeded(member, ticket.number)
                return answer

    async def _placed(self, ticket: Ticket) -> Member:
        """Render the prompt if it was not, and wait for a place."""
        request = ticket.request
        if isinstance(request, Request) and not ticket.prompts:
            await self._render(ticket, request)
        self._dispatcher.enqueue(ticket)
        turn = ticket.turn
        assert turn is not None
        if turn.done():
            return turn.result()
        try:
            return await ticket.wait(lambda: self._in_time(turn))
        except BaseException:
            self._dispatcher.withdraw(ticket)
            raise

    async def _render(self, ticket: Ticket, request: Request) -> None:
        """Render the prompt, unless all engines are being started anew: the one it is given to will render it then."""
        ticket.check()
        able = self._admission.askable(ticket, patient=True)
        if not able:
            return
        try:
            prompt, asked = await ticket.wait(lambda: self._desk.render(request, able))
        except SageLLMError as error:
            # The last engine may have died over it, and be on its way back.
            if not error.retryable or self._admission.askable(ticket, patient=True):
                raise
            return
        ticket.prompts[asked.render_key], ticket.prompt_tokens = prompt, len(prompt.token_ids)

    async def _in_time(self, turn: asyncio.Future[Member]) -> Member:
        try:
            return await asyncio.wait_for(turn, self._settings.queue_timeout_s)
        except asyncio.TimeoutError:
            raise SageLLMError(
                ErrorCode.DEADLINE_EXCEEDED,
                f"the request waited {self._settings.queue_timeout_s:g} s in the queue without a free engine",
                retry_after_s=self._admission.retry_after_s(),
            ) from None

    def _try_again(self, ticket: Ticket, member: Member, error: SageLLMError, seam: Seam | None = None) -> bool:
        """Note a failed attempt, and say whether another engine may be asked."""
        acting = ticket.acting
        member, likeness = acting.member or member, (acting.member or member).likeness
        self._failed(ticket, acting, member, error)
        self._dispatcher.withdraw(ticket)
        ticket.failed_attempts += 1
        ticket.forgive()
        if not error.retryable or ticket.failed_attempts >= self._settings.max_attempts or self._admission.closed:
            return False
        if not ticket.delivered:
            return True
        if seam is None or seam.given is None or likeness is None:
            return False
        ticket.likeness = likeness
        return True

    def _failed(self, ticket: Ticket, acting: Ticket, member: Member, error: SageLLMError) -> None:
        self._crew.attempt_failed(member, error)
        self._breakers.failed(member, acting.number, error)
        if error.code is not ErrorCode.UNAVAILABLE or not member.restarting:
            # One that was taken may be what the engine died of; one that was not can wait until it is back.
            ticket.tried.add(member.engine_id)


def _first_cause(failure: SageLLMError | None, error: SageLLMError) -> SageLLMError:
    """What to tell a caller whose retry found no engine: the failure before, unless time or the caller ended it."""
    if failure is None or error.code in (ErrorCode.CANCELLED, ErrorCode.DEADLINE_EXCEEDED):
        return error
    return failure


def _diverged(ticket: Ticket, failure: SageLLMError | None) -> ErrorEvent:
    """The end of a stream that could not be gone on with, told by what broke it off."""
    cause = failure.message if failure is not None else "its engine failed"
    error = SageLLMError(
        ErrorCode.ENGINE_FAILED, f"{cause}; another engine gave another answer, so the stream cannot go on"
    )
    return ErrorEvent(request_id=ticket.request.request_id, error=error.info())
