"""What routes share: reading a JSON body, answering JSON, serving a stream, wording errors in the API's names.

Knows nothing of any one route.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from sagellm_gateway.errors import public
from sagellm_gateway.gateway import Gateway, gateway_of
from sagellm_gateway.leash import Leash
from sagellm_gateway.lifecycle import ClientGoneError
from sagellm_gateway.openai.body import Body
from sagellm_gateway.stream import EventStream, EventWriter
from sagellm_protocol import SageLLMError

T = TypeVar("T")


async def json_body(request: Request) -> bytes:
    """The bytes of a body that says it is JSON, or says nothing of itself.

    Raises:
        HTTPException: 415 for another kind, 408 for one that does not come.
        ClientGoneError: The caller left before it was complete.
    """
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            _check_kind(str(value, "latin-1"))
            break
    timeout = gateway_of(request).settings.read_timeout_s
    with Leash() as leash:
        timer = asyncio.get_running_loop().call_later(timeout, _too_late, leash, timeout)
        try:
            return await _whole(request.receive)
        finally:
            timer.cancel()


def _check_kind(given: str) -> None:
    kind = given.partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise HTTPException(415, f"Content-Type is {kind[:80]!r}; send application/json")


def _too_late(leash: Leash, timeout: float) -> None:
    leash.end(HTTPException(408, f"the body did not come within {timeout:g} s"))


async def _whole(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def answer(value: Any) -> Response:
    """A JSON answer."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Text of an engine may hold half a surrogate pair, which UTF-8 cannot write.
    return Response(text.encode("utf-8", "replace"), media_type="application/json")


async def attended(
    gateway: Gateway, request: Request, work: Coroutine[Any, Any, T], say: Callable[[T], Any]
) -> Response:
    """Answer with what ``work`` comes to; a caller that leaves cancels it, and nobody is answered.

    Args:
        gateway: Who serves.
        request: Its body has been read.
        work: What is done.
        say: Its result as JSON.
    """
    return answer(say(await gateway.lifecycle.attend(work, request.receive)))


def event_stream(gateway: Gateway, produce: Callable[[EventWriter], Awaitable[None]]) -> EventStream:
    """Answer with a stream of events."""
    settings = gateway.settings
    return EventStream(
        produce, gateway.lifecycle, keep_alive_s=settings.sse_keep_alive_s, stall_s=settings.stall_timeout_s
    )


@contextmanager
def worded(names: Mapping[str, str] | Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """Let errors pass in the API's names.

    Args:
        names: API name of each contract field that is named otherwise, or what gives them once they are needed.
    """
    try:
        yield
    except SageLLMError as error:
        raise public(error, names() if callable(names) else names) from error


def takes(kind: type[Body]) -> dict[str, Any]:
    """What the API description says of a route whose body is read by hand."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}},
        }
    }
