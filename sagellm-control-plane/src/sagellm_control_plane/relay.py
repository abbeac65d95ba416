"""One attempt of one request on one engine: the engine's events under the caller's id, and nothing left behind.

Knows nothing of queues; an attempt that fails says so and is over.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

import anyio

from sagellm_protocol import (
    DeltaEvent,
    EmbedRequest,
    EndEvent,
    ErrorCode,
    ErrorEvent,
    RenderedPrompt,
    Request,
    SageLLMError,
    ScoreRequest,
    StreamEvent,
    is_terminal,
)
from sagellm_protocol.interfaces import Engine

from .dispatch import Dispatcher
from .fleet import Member
from .ticket import Ticket

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R", Request, EmbedRequest, ScoreRequest)


async def generate(
    ticket: Ticket,
    member: Member,
    dispatcher: Dispatcher,
    prompt_for: Callable[[Ticket, Member], Awaitable[RenderedPrompt]],
    now: Callable[[], float],
    abort_timeout_s: float,
) -> AsyncGenerator[StreamEvent, None]:
    """Relay one attempt. Its last event is terminal, whatever the engine does.

    Args:
        ticket: Has a place at ``member``.
        member: Where to send it.
        dispatcher: Told how the answer grows.
        prompt_for: Gives the prompt as that engine reads it, if the ticket does not have it already.
        now: Monotonic seconds.
        abort_timeout_s: Longest to wait for the engine to let go of an attempt that was not finished.
    """
    request = ticket.request
    assert isinstance(request, Request)
    caller_id, finished = request.request_id, False
    try:
        engine = _engine(member)
        prompt = ticket.prompts.get(member.render_key) or await ticket.wait(lambda: prompt_for(ticket, member))
        sent = now()
        events = engine.generate(_renamed(ticket, request, now()), prompt)
        try:
            while not finished:
                event = await _next(ticket, member, events)
                finished = is_terminal(event)
                if isinstance(event, DeltaEvent):
                    _account(ticket, member, dispatcher, event, sent, now())
                yield _told(ticket, event, caller_id)
        finally:
            # The caller's scope may be cancelled already: without a shield this await would never run.
            with anyio.CancelScope(shield=True), anyio.move_on_after(abort_timeout_s):
                await _let_go(engine, events, None if finished else ticket.attempt_id)
    except SageLLMError as error:
        yield ErrorEvent(request_id=caller_id, error=error.info())


async def call(
    ticket: Ticket, member: Member, request: R, method: Callable[[Engine], Callable[[R], Awaitable[T]]], now: float
) -> T:
    """One attempt of a request that has one answer.

    Raises:
        SageLLMError: What went wrong, also where the engine raised something else.
    """
    engine = _engine(member)
    attempt = _renamed(ticket, request, now)
    try:
        return await ticket.wait(lambda: method(engine)(attempt))
    except SageLLMError:
        raise
    except Exception as error:
        raise broken(member, error) from error


def broken(member: Member, error: Exception) -> SageLLMError:
    """What a caller is told when an engine raised what engines do not raise; the log has the rest."""
    log.error("engine %s raised", member.engine_id, exc_info=error)
    return SageLLMError(ErrorCode.ENGINE_FAILED, f"engine {member.engine_id} failed: {type(error).__name__}: {error}")


def _engine(member: Member) -> Engine:
    if member.engine is None:
        raise SageLLMError(ErrorCode.UNAVAILABLE, f"engine {member.engine_id} has not started")
    return member.engine


def _renamed(ticket: Ticket, request: R, now: float) -> R:
    """The request as an engine sees it: under an id of its own, and with the time that is left."""
    ticket.attempt_id = uuid.uuid4().hex
    update: dict[str, object] = {"request_id": ticket.attempt_id}
    if request.slo is not None and ticket.deadline is not None:
        update["slo"] = request.slo.model_copy(update={"deadline_ms": ticket.remaining_ms(now)})
    return request.model_copy(update=update)


async def _next(ticket: Ticket, member: Member, events: AsyncIterator[StreamEvent]) -> StreamEvent:
    try:
        return await ticket.wait(events.__anext__)
    except StopAsyncIteration:
        raise SageLLMError(
            ErrorCode.ENGINE_FAILED, f"engine {member.engine_id} stopped before its answer was complete"
        ) from None
    except SageLLMError:
        raise
    except Exception as error:
        raise broken(member, error) from error


def _account(
    ticket: Ticket, member: Member, dispatcher: Dispatcher, event: DeltaEvent, sent: float, now: float
) -> None:
    if ticket.member is not member:
        return
    if not ticket.begun:
        ticket.begun = True
        ticket.first_output_at = ticket.first_output_at or now
        dispatcher.began(ticket, member, now - sent)
    ticket.produced_tokens += len(event.token_ids)
    dispatcher.produced(ticket, member, len(event.token_ids))


def _told(ticket: Ticket, event: StreamEvent, caller_id: str) -> StreamEvent:
    """The event as the caller is told it: under the caller's own id."""
    if isinstance(event, DeltaEvent):
        # Made anew rather than copied, at less cost: there is one for every token.
        return DeltaEvent(**{**vars(event), "request_id": caller_id})
    update: dict[str, object] = {"request_id": caller_id}
    if isinstance(event, EndEvent):
        rate = ticket.failed_attempts / (ticket.failed_attempts + 1)
        update["metrics"] = event.metrics.model_copy(update={"error_rate": rate})
    return event.model_copy(update=update)


async def _let_go(engine: Engine, events: AsyncIterator[StreamEvent], unfinished: str | None) -> None:
    """Close an engine's stream, which aborts what it has not finished; what cannot be closed is aborted by id."""
    close = getattr(events, "aclose", None)
    try:
        if close is not None:
            await close()
        elif unfinished is not None:
            await engine.abort(unfinished)
    except Exception:
        log.exception("an engine failed to let go of a request")
