"""HTTP/1.1 as uvicorn and httptools speak it, with a bound on the size of a request's headers.

Knows nothing of what headers mean. uvicorn bounds them only with its slower parser.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def bounded_protocol(max_header_bytes: int) -> type[HttpToolsProtocol]:
    """A protocol class that hangs up, after a 431, on headers that do not end within ``max_header_bytes``."""

    class BoundedHttpProtocol(HttpToolsProtocol):
        _header_bytes = 0
        _in_headers = True

        def data_received(self, data: bytes) -> None:
            # What follows a message in the same read is not counted: one read's worth at most.
            self._header_bytes += len(data)
            super().data_received(data)
            if self._in_headers and self._header_bytes > max_header_bytes and not self.transport.is_closing():
                self.transport.write(
                    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )
                self.transport.close()

        def on_headers_complete(self) -> None:
            self._in_headers = False
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_headers = True
            self._header_bytes = 0
            super().on_message_complete()

    return BoundedHttpProtocol
