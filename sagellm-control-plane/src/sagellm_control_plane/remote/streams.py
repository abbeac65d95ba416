"""Streams of lines that an engine server sends, and the pulse that keeps silent ones alive.

One task beats for all streams: a timer for each would cost more than the line it sends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.types import Send

from sagellm_protocol import PROTOCOL_VERSION
from sagellm_protocol.remote import VERSION_HEADER

CLIENT_IDLE_S = 60
"""Seconds after which a client closes a connection it does not use."""
SERVER_IDLE_S = 75
"""Seconds after which a server does. The client must be first: a request may be on its way when a server hangs up."""


class Stream:
    """One answer, sent line by line."""

    def __init__(self, send: Send, media_type: str) -> None:
        self._send = send
        self._type = media_type
        self.last_sent = time.monotonic()
        self.sending = False
        """Whether its reader has yet to take what was sent: such a stream needs no sign of life."""

    async def open(self) -> None:
        """Send the head."""
        headers = [(b"content-type", self._type.encode()), (VERSION_HEADER.encode(), PROTOCOL_VERSION.encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def line(self, data: bytes = b"") -> None:
        """Send one line; by default a blank one."""
        self.last_sent, self.sending = time.monotonic(), True
        await self._send({"type": "http.response.body", "body": data + b"\n", "more_body": True})
        self.sending = False

    async def close(self) -> None:
        """Send the end, without which a reader takes the stream for broken off."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class Pulse:
    """Sends a blank line on every stream that has been silent for ``interval_s``."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._streams: set[Stream] = set()
        self._task: asyncio.Task[None] | None = None
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def follow(self, stream: Stream) -> Iterator[None]:
        """Keep a stream alive inside the block."""
        self._streams.add(stream)
        self._none.clear()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._beat(), name="pulse")
        try:
            yield
        finally:
            self._streams.discard(stream)
            if not self._streams:
                self._none.set()
                self._task.cancel()
                self._task = None

    async def quiet(self, limit_s: float) -> None:
        """Return once no stream is open, or after ``limit_s``."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._none.wait(), limit_s)

    async def _beat(self) -> None:
        while True:
            now = time.monotonic()
            for stream in [each for each in self._streams if not each.sending]:
                if now - stream.last_sent >= self._interval_s:
                    # A reader that is slow must not hold up the others' pulse; its line waits in its own buffer.
                    with suppress(asyncio.TimeoutError, OSError):
                        await asyncio.wait_for(stream.line(), 0.1)
            oldest = min((stream.last_sent for stream in self._streams if not stream.sending), default=now)
            await asyncio.sleep(max(0.01, oldest + self._interval_s - time.monotonic()))
