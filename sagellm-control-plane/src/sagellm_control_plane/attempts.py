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
    ErrorCode,
    ErrorEvent,
    Request,
    SageLLMError,
    ScoreRequest,
    StartEvent,
    StreamEvent,
)
from sagellm_protocol.interfaces import Engine

from . import relay
from .admission import Admission
from .crew import Crew
from .dispatch import Dispatcher
from .fleet import Member
from .rendering import RenderDesk
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
        desk: Renders prompts.
        settings: Limits.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        admission: Admission,
        dispatcher: Dispatcher,
        crew: Crew,
        desk: RenderDesk,
        settings: PlaneSettings,
        clock: Callable[[], float],
    ) -> None:
        self._admission = admission
        self._dispatcher = dispatcher
        self._crew = crew
        self._desk = desk
        self._settings = settings
        self._clock = clock

    async def generate(self, ticket: Ticket) -> AsyncGenerator[StreamEvent, None]:
        """Render, wait, relay, and begin again on another engine while that is allowed."""
        started = False
        failure: SageLLMError | None = None
        while True:
            try:
                member = await self._placed(ticket)
            except SageLLMError as error:
                self._dispatcher.withdraw(ticket)
                told = _first_cause(failure, error)
                yield ErrorEvent(request_id=ticket.request.request_id, error=told.info())
                return
            failure = None
            attempt = relay.generate(
                ticket, member, self._dispatcher, self._desk.prompt_for, self._clock, self._settings.abort_timeout_s
            )
            async with aclosing(attempt) as events:
                async for event in events:
                    if isinstance(event, ErrorEvent):
                        cause = SageLLMError.from_info(event.error)
                        if self._try_again(ticket, member, cause):
                            failure = cause
                            break
                    if isinstance(event, StartEvent) and started:
                        continue
                    started = started or isinstance(event, StartEvent)
                    ticket.delivered = ticket.delivered or isinstance(event, DeltaEvent)
                    yield event
            if failure is None:
                return

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
            try:
                return await relay.call(ticket, member, request, method, self._clock())
            except SageLLMError as error:
                if not self._try_again(ticket, member, error):
                    raise
                failure = error

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

    def _try_again(self, ticket: Ticket, member: Member, error: SageLLMError) -> bool:
        """Note a failed attempt, and say whether another engine may be asked."""
        self._dispatcher.withdraw(ticket)
        self._crew.attempt_failed(member, error)
        if error.code is not ErrorCode.UNAVAILABLE or not member.restarting:
            # One that was taken may be what the engine died of; one that was not can wait until it is back.
            ticket.tried.add(member.engine_id)
        ticket.failed_attempts += 1
        ticket.forgive()
        return (
            error.retryable
            and not ticket.delivered
            and ticket.failed_attempts < self._settings.max_attempts
            and not self._admission.closed
        )


def _first_cause(failure: SageLLMError | None, error: SageLLMError) -> SageLLMError:
    """What to tell a caller whose retry found no engine: the failure before, unless time or the caller ended it."""
    if failure is None or error.code in (ErrorCode.CANCELLED, ErrorCode.DEADLINE_EXCEEDED):
        return error
    return failure
