"""From a request of the contract to its events and answers, by way of the control plane.

Knows nothing of HTTP or of OpenAI's shapes. Whoever leaves early takes the request along: closing aborts it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from sagellm_protocol import (
    ControlPlane,
    DeltaEvent,
    EndEvent,
    ErrorCode,
    ErrorEvent,
    Request,
    Response,
    ResponseBuilder,
    SageLLMError,
    StartEvent,
    Usage,
)
from sagellm_protocol.tracing import traced

from .metrics import Meters
from .openai.chunks import Chunks
from .stream import EventWriter

T = TypeVar("T")


class Relay:
    """Submits requests and measures them.

    Args:
        plane: Where requests go.
        meters: What is measured of each.
    """

    def __init__(self, plane: ControlPlane, meters: Meters) -> None:
        self._plane = plane
        self._meters = meters

    async def events(self, request: Request) -> AsyncGenerator[StartEvent | DeltaEvent | EndEvent, None]:
        """A request's events up to its end.

        Raises:
            SageLLMError: As the request ended; ``ENGINE_FAILED`` when its stream stopped without an end.
        """
        events = self._plane.submit(traced(request))
        with self._meters.request(request.model) as meter:
            try:
                async for event in events:
                    meter.saw(event)
                    if isinstance(event, ErrorEvent):
                        raise SageLLMError.from_info(event.error)
                    yield event
                    if isinstance(event, EndEvent):
                        return
            finally:
                # The contract asks for an iterator; one that can be closed ends its request then.
                if (close := getattr(events, "aclose", None)) is not None:
                    await close()
        raise SageLLMError(ErrorCode.ENGINE_FAILED, "the engine's stream stopped before the answer was complete")

    async def respond(self, requests: Sequence[Request]) -> list[Response]:
        """Whole answers, in the order of the requests; the first error ends them all."""
        return await together([self._respond(request) for request in requests])

    async def stream(self, requests: Sequence[Request], chunks: Sequence[Chunks], writer: EventWriter) -> list[Usage]:
        """Write each request's events through its own chunks as they come, and return what each used."""
        return await together([self._stream(*pair, writer) for pair in zip(requests, chunks, strict=True)])

    async def _respond(self, request: Request) -> Response:
        builder = ResponseBuilder(request.model, request.trace_id)
        async with aclosing(self.events(request)) as events:
            async for event in events:
                builder.add(event)
        return builder.response()

    async def _stream(self, request: Request, chunks: Chunks, writer: EventWriter) -> Usage:
        usage = Usage(prompt_tokens=0)
        async with aclosing(self.events(request)) as events:
            async for event in events:
                if data := chunks.of(event):
                    await writer.write(data)
                if isinstance(event, EndEvent):
                    usage = event.usage
        return usage


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run some work at once and return all results; the first error cancels the rest, and is raised once they ended."""
    if len(works) == 1:
        return [await works[0]]
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
