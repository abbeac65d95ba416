"""HTTP/1.1 as uvicorn and httptools speak it, with bounds on the size of a request's headers and the time they take.

Knows nothing of what headers mean. uvicorn bounds their size only with its slower parser, and their time not at all.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHttpProtocol(HttpToolsProtocol):
    """Answers 431 or 408 to headers that are too large or too late, and hangs up."""

    max_header_bytes: ClassVar[int]
    """Most bytes of a request's headers."""
    read_timeout_s: ClassVar[float]
    """Seconds that headers may take, from the connection's start or their own first byte."""

    _header_bytes = 0
    _in_headers = True
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # What follows a message in the same read is not counted: one read's worth at most.
        self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes:
            self._await_headers()
            if self._header_bytes > self.max_header_bytes:
                self._hang_up(_TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_headers = True
        self._header_bytes = 0
        super().on_message_complete()

    def _await_headers(self) -> None:
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.read_timeout_s, self._hang_up, _TOO_LATE)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self, answer: bytes) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()


def bounded_protocol(max_header_bytes: int, read_timeout_s: float) -> type[BoundedHttpProtocol]:
    """The protocol with its bounds set: uvicorn makes one object a connection, and passes no arguments of ours."""
    bounds = {"max_header_bytes": max_header_bytes, "read_timeout_s": read_timeout_s}
    return type("BoundedHttpProtocol", (BoundedHttpProtocol,), bounds)
