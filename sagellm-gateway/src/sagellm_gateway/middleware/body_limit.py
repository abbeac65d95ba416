"""Refuses bodies that are too large, by what they say of themselves and by what they turn out to be.

Knows nothing of what bodies mean.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sagellm_gateway.errors import error_response
from sagellm_protocol import ErrorCode, SageLLMError


class BodyLimit:
    """Bounds what a caller may send.

    Args:
        app: What is inside; may meet a ``SageLLMError`` where it reads the body.
        limit: Most bytes of a body.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (declared := _declared(scope)) > self._limit:
            await error_response(self._refusal(f"{declared} bytes"))(scope, receive, send)
            return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > self._limit:
                    raise self._refusal("more than that")
            return message

        await self._app(scope, bounded, send)

    def _refusal(self, size: str) -> SageLLMError:
        return SageLLMError(
            ErrorCode.PAYLOAD_TOO_LARGE, f"the body is too large: at most {self._limit} bytes are taken (got {size})"
        )


def _declared(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            # Python refuses to read numbers of thousands of digits.
            return int(value[:18])
    return 0
