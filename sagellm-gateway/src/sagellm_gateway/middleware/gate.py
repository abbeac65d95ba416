"""Counts requests in, and turns new ones away once the gateway drains. What operators look at stays open.

Knows nothing of why it drains.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from sagellm_gateway.errors import error_response
from sagellm_gateway.lifecycle import Lifecycle
from sagellm_protocol import SageLLMError

OPERATORS = frozenset({"/health", "/ready", "/metrics", "/version"})


class Gate:
    """Guards the way to the routes.

    Args:
        app: What is inside.
        lifecycle: Whether new requests are taken.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in OPERATORS:
            await self._app(scope, receive, send)
            return
        try:
            self._lifecycle.refuse_if_draining()
        except SageLLMError as error:
            await error_response(error)(scope, receive, send)
            return
        self._lifecycle.in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._lifecycle.in_flight -= 1
