"""Lets in who holds a key; every path is closed unless it is listed as open.

Knows nothing of whose a key is.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from sagellm_gateway.errors import error_response
from sagellm_protocol import ErrorCode, SageLLMError


class BearerAuth:
    """Wants ``Authorization: Bearer KEY``.

    Args:
        app: What is inside.
        keys: Keys that are good.
        open_paths: Exact paths that need none.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str], open_paths: Iterable[str]) -> None:
        self._app = app
        # Digests have one length, so that comparing them takes one time whatever was sent.
        self._digests = [sha256(key.encode()).digest() for key in keys]
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["path"] not in self._open and not self._allowed(scope):
            await error_response(_refusal(scope))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        digest = sha256(_token(scope)).digest()
        # Every key is compared, so that time does not tell which one was met.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _token(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = bytes(value).partition(b" ")
            return token.strip() if scheme.lower() == b"bearer" else b""
    return b""


def _refusal(scope: Scope) -> SageLLMError:
    given = any(name == b"authorization" for name, _ in scope["headers"])
    message = "the API key is not valid here" if given else "an API key is needed"
    return SageLLMError(ErrorCode.UNAUTHENTICATED, f"{message}; send the header 'Authorization: Bearer KEY'")
