"""Events that a scripted plane answers with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from planes import Script
from sagellm_protocol import (
    ChoiceEnd,
    DeltaEvent,
    EndEvent,
    ErrorCode,
    ErrorEvent,
    FinishReason,
    PositionLogprobs,
    Request,
    SageLLMError,
    StartEvent,
    StreamEvent,
    TokenLogprob,
    Usage,
)


def start(**fields: Any) -> StartEvent:
    return StartEvent(request_id="r", prompt_tokens=3, **fields)


def delta(text: str = "", **fields: Any) -> DeltaEvent:
    return DeltaEvent(request_id="r", text=text, **{"token_ids": (1,), **fields})


def end(*reasons: str) -> EndEvent:
    choices = tuple(
        ChoiceEnd(index=index, finish_reason=FinishReason(reason)) for index, reason in enumerate(reasons or ("stop",))
    )
    return EndEvent(request_id="r", choices=choices, usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1))


def error(code: ErrorCode, message: str = "it broke", **fields: Any) -> ErrorEvent:
    return ErrorEvent(request_id="r", error=SageLLMError(code, message, **fields).info())


def token(text: str, logprob: float, token_id: int, *top: tuple[str, float, int]) -> PositionLogprobs:
    return PositionLogprobs(
        token_id=token_id,
        token=text,
        logprob=logprob,
        rank=1,
        top=tuple(TokenLogprob(token_id=number, token=word, logprob=value) for word, value, number in top),
    )


def says(*events: StreamEvent) -> Script:
    """The same events for every request."""

    async def script(_: Request) -> AsyncIterator[StreamEvent]:
        for event in events:
            yield event

    return script


def silent_after(*events: StreamEvent) -> Script:
    """Some events, and then nothing for ever."""

    async def script(_: Request) -> AsyncIterator[StreamEvent]:
        for event in events:
            yield event
        await asyncio.Event().wait()

    return script


def endless(text: str) -> Script:
    """Text without end, as fast as it is taken."""

    async def script(_: Request) -> AsyncIterator[StreamEvent]:
        yield start()
        while True:
            yield delta(text)
            # A generator that never waits would starve the loop whose reader is slow.
            await asyncio.sleep(0)

    return script
