"""A response of server-sent events: headers with the first byte, signs of life in silence, an end for stalled readers.

Knows nothing of what is written.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sagellm_protocol import ErrorCode, SageLLMError

from .errors import error_body
from .leash import Leash
from .lifecycle import ClientGoneError, Lifecycle

_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        # Proxies that buffer would hold tokens back.
        (b"x-accel-buffering", b"no"),
    ],
}
_SIGN_OF_LIFE = b": keep-alive\n\n"
_GOODBYE_S = 1.0
"""Seconds that a reader has to take the error that ends its stream."""


class EventWriter:
    """Writes events to one reader. Nothing is queued: a write returns once the connection has room for more.

    Args:
        send: The ASGI channel.
        keep_alive_s: Seconds of silence after which to show a sign of life.
        stall_s: Seconds that one write may take.
    """

    def __init__(self, send: Send, keep_alive_s: float, stall_s: float) -> None:
        self._send = send
        self.keep_alive_s = keep_alive_s
        self.stall_s = stall_s
        self._lock = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._writing_since: float | None = None
        self.started = False
        """Whether the status line is out, after which errors can only be events."""

    async def write(self, data: bytes) -> None:
        """Write whole events."""
        async with self._lock:
            self._writing_since = began = self._loop.time()
            try:
                if not self.started:
                    self.started = True
                    await self._send(dict(_START))
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
                self._last = began
            finally:
                # A write that was called off no longer stalls: what cleans up after it is not to be ended for that.
                self._writing_since = None

    async def close(self) -> None:
        """End the response."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Show signs of life while the block runs, and end it with ``ClientGoneError`` when the reader stalls."""
        with Leash() as leash:
            watch = _Watch(self, leash)
            try:
                yield
            finally:
                watch.stop()

    def due(self, now: float) -> tuple[float, bool]:
        """Seconds until something is to be done about this reader, and whether it will have stalled by then.

        Args:
            now: On the loop's clock.
        """
        if self._writing_since is None:
            return self._last + self.keep_alive_s - now, False
        return self._writing_since + self.stall_s - now, True


class _Watch:
    """Looks at a writer now and then; a timer rather than a task, because mostly there is nothing to do.

    Args:
        writer: What to look at.
        leash: Of whoever writes.
    """

    def __init__(self, writer: EventWriter, leash: Leash) -> None:
        self._writer = writer
        self._leash = leash
        self._loop = asyncio.get_running_loop()
        self._sign: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(min(writer.keep_alive_s, writer.stall_s), self._look)

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()
        if self._sign is not None:
            self._sign.cancel()

    def _look(self) -> None:
        writer = self._writer
        left, stalled = writer.due(self._loop.time())
        if left <= 0 and stalled:
            self._leash.end(ClientGoneError())
            return
        if left <= 0:
            self._sign = self._loop.create_task(writer.write(_SIGN_OF_LIFE))
            self._sign.add_done_callback(self._signed)
            left = writer.keep_alive_s
        # A write may begin meanwhile, and then stall.
        self._timer = self._loop.call_later(min(left, writer.stall_s), self._look)

    def _signed(self, sign: asyncio.Task[None]) -> None:
        if not sign.cancelled() and isinstance(error := sign.exception(), Exception):
            self._leash.end(error)


class EventStream(Response):
    """Answers with the events that ``produce`` writes.

    An error before the first byte is raised, and so becomes an HTTP error; one after it is written as the last event,
    and nothing pretends that the answer was complete.

    Args:
        produce: Writes all events; raises ``SageLLMError``.
        lifecycle: Ends the stream when the caller goes away or the gateway stops.
        keep_alive_s: As for :class:`EventWriter`.
        stall_s: As for :class:`EventWriter`.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        produce: Callable[[EventWriter], Awaitable[None]],
        lifecycle: Lifecycle,
        *,
        keep_alive_s: float,
        stall_s: float,
    ) -> None:
        super().__init__()
        self._produce = produce
        self._lifecycle = lifecycle
        self._keep_alive_s = keep_alive_s
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        writer = EventWriter(send, self._keep_alive_s, self._stall_s)
        try:
            await self._lifecycle.attend(self._write(writer), receive)
        except ClientGoneError:
            raise
        except SageLLMError as error:
            if not writer.started:
                raise
            await _tell(writer, error)
        except Exception:
            if writer.started:
                await _tell(writer, SageLLMError(ErrorCode.INTERNAL, "an internal error; the server's log tells more"))
            raise
        else:
            await writer.close()

    async def _write(self, writer: EventWriter) -> None:
        with writer.watched():
            await self._produce(writer)


async def _tell(writer: EventWriter, error: SageLLMError) -> None:
    """End a stream with an error, if its reader still takes anything."""
    try:
        await asyncio.wait_for(writer.write(f"data: {json.dumps(error_body(error))}\n\n".encode()), _GOODBYE_S)
        await asyncio.wait_for(writer.close(), _GOODBYE_S)
    except asyncio.TimeoutError:
        return
