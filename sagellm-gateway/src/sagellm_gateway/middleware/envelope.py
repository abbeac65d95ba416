"""Gives every request an id, counts its answer, and turns what nobody caught into a 500 that is logged once.

Knows nothing of what is asked.
"""

from __future__ import annotations

import logging
import re
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sagellm_gateway.errors import error_response
from sagellm_gateway.lifecycle import ClientGoneError
from sagellm_gateway.metrics import Meters
from sagellm_protocol import ErrorCode, SageLLMError
from sagellm_protocol.logs import naming
from sagellm_protocol.tracing import serving

from .gate import OPERATORS

HEADER = "x-request-id"
UNMATCHED = "unmatched"
"""Route of requests that match none; their paths are the caller's invention and would make endless series."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ACCEPTABLE = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")

_log = logging.getLogger("sagellm_gateway")


class Envelope:
    """The outermost layer of our own.

    Args:
        app: What is inside.
        meters: Where answers are counted.
    """

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given(scope) or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        named = (HEADER.encode(), request_id.encode())
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), named]
            await send(message)

        self._meters.http_in_flight.inc()
        try:
            with naming(request_id):
                if scope["path"] in OPERATORS:  # who looks every few seconds is not worth a trace
                    await self._app(scope, receive, answer)
                else:
                    await self._traced(scope, receive, answer)
        except ClientGoneError:
            pass  # nobody is there to be told; the count says so
        except Exception:  # noqa: BLE001 - the one place that catches all: a caller must be answered, and the log know
            with naming(request_id):
                _log.exception("request %s %s %s failed", request_id, scope["method"], scope["path"])
            if not status:
                sorry = SageLLMError(
                    ErrorCode.INTERNAL, f"an internal error; the server's log tells more under request id {request_id}"
                )
                await error_response(sorry)(scope, receive, answer)
        finally:
            self._meters.http_in_flight.dec()
            route = getattr(scope.get("route"), "path", UNMATCHED)
            method = scope["method"] if scope["method"] in _METHODS else "other"
            # Status 0: the caller left before an answer began.
            self._meters.http.labels(method, route, str(status or 499)).inc()

    async def _traced(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request as a part of its caller's trace."""
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        with serving(scope["method"], _header(scope, b"traceparent")) as span:
            try:
                await self._app(scope, receive, noted if span is not None else send)
            finally:
                if span is not None:
                    _describe(span, scope, status)


def _describe(span: Any, scope: Scope, status: int) -> None:
    """Tell of a request in the words of OpenTelemetry's conventions for HTTP."""
    route = getattr(scope.get("route"), "path", None)
    span.set_attribute("http.request.method", scope["method"])
    span.set_attribute("url.path", scope["path"])
    span.set_attribute("sagellm.request_id", scope["state"]["request_id"])
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)
    if status:
        span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_attribute("error.type", str(status))


def _header(scope: Scope, wanted: bytes) -> str | None:
    for name, value in scope["headers"]:
        if name == wanted:
            return str(value, "latin-1")
    return None


def _given(scope: Scope) -> str | None:
    """The caller's own id, where it is fit for logs and headers."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ACCEPTABLE.fullmatch(value):
            return str(value, "ascii")
    return None
