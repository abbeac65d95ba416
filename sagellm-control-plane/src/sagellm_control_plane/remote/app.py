"""The engine server's routes, as one ASGI application around an engine that was made elsewhere.

Knows nothing of processes, ports or signals.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sagellm_control_plane.sleeping import sleeper
from sagellm_protocol import (
    PROTOCOL_VERSION,
    AdapterHost,
    AdapterSpec,
    EmbedRequest,
    EngineState,
    ErrorCode,
    ErrorEvent,
    Request,
    SageLLMError,
    ScoreRequest,
)
from sagellm_protocol.interfaces import Engine
from sagellm_protocol.logs import name_of, naming
from sagellm_protocol.remote import (
    EVENT_STREAM_TYPE,
    KEEPALIVE_S,
    PREFIX,
    VERSION_HEADER,
    AbortAnswer,
    AbortCall,
    ErrorBody,
    GenerateCall,
    ReloadCall,
    SleepCall,
    UnloadAdapterCall,
    check_version,
)

from .streams import Pulse, Stream

log = logging.getLogger(__name__)
M = TypeVar("M", bound=BaseModel)
MAX_BODY_BYTES = 64 * 2**20
_HEALTH = PREFIX + "/health"


class EngineApp:
    """ASGI application of an engine server.

    Args:
        engine: What is served.
        api_key: What clients must present, on every path but health.
        keepalive_s: Silence after which a stream sends a sign of life.
        max_body_bytes: Longest body taken.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        api_key: str | None = None,
        keepalive_s: float = KEEPALIVE_S,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._engine = engine
        self._key = None if api_key is None else f"Bearer {api_key}".encode()
        self._max_body = max_body_bytes
        self._pulse = Pulse(keepalive_s)
        self._routes = Starlette(
            routes=[
                Route(PREFIX + "/info", self._told(self._info)),
                Route(PREFIX + "/stats", self._told(engine.stats)),
                Route(_HEALTH, self._health),
                Route(PREFIX + "/render", self._done(Request, self._render), methods=["POST"]),
                Route(PREFIX + "/embed", self._done(EmbedRequest, engine.embed), methods=["POST"]),
                Route(PREFIX + "/score", self._done(ScoreRequest, engine.score), methods=["POST"]),
                Route(PREFIX + "/abort", self._done(AbortCall, self._abort), methods=["POST"]),
                Route(PREFIX + "/adapters/load", self._done(AdapterSpec, self._load_adapter), methods=["POST"]),
                Route(
                    PREFIX + "/adapters/unload", self._done(UnloadAdapterCall, self._unload_adapter), methods=["POST"]
                ),
                Route(PREFIX + "/drain", self._drain, methods=["POST"]),
                Route(PREFIX + "/sleep", self._changed(self._sleep), methods=["POST"]),
                Route(PREFIX + "/wake", self._changed(self._wake), methods=["POST"]),
                Route(PREFIX + "/reload", self._changed(self._reload), methods=["POST"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check version and key, then route. Generation, the busy path, is handled here without a framework."""
        if scope["type"] != "http":
            raise RuntimeError(f"an engine server speaks HTTP, not {scope['type']}")
        headers = Headers(scope=scope)
        try:
            if scope["path"] != _HEALTH:
                self._authenticate(headers)
            check_version(headers.get(VERSION_HEADER))
        except SageLLMError as error:
            await _refusal(error)(scope, receive, _versioned(send))
            return
        if scope["path"] == PREFIX + "/generate" and scope["method"] == "POST":
            await self._generate(HttpRequest(scope, receive), send)
        else:
            await self._routes(scope, receive, _versioned(send))

    async def quiet(self, limit_s: float) -> None:
        """Return once no stream is open, or after ``limit_s``."""
        await self._pulse.quiet(limit_s)

    def _authenticate(self, headers: Headers) -> None:
        given = headers.get("authorization", "").encode()
        if self._key is not None and not hmac.compare_digest(given, self._key):
            raise SageLLMError(
                ErrorCode.UNAUTHENTICATED,
                "this engine server wants the key it was started with: Authorization: Bearer KEY",
            )

    async def _read(self, http: HttpRequest, model: type[M]) -> M:
        body = bytearray()
        async for piece in http.stream():
            body += piece
            if len(body) > self._max_body:
                raise SageLLMError(
                    ErrorCode.PAYLOAD_TOO_LARGE, f"the body is longer than {self._max_body} bytes; send less at once"
                )
        try:
            return model.model_validate_json(bytes(body))
        except ValidationError as error:
            raise SageLLMError.from_validation(error) from error

    def _told(self, tell: Callable[[], Awaitable[BaseModel]]) -> Callable[[HttpRequest], Awaitable[Response]]:
        """A route that answers a message about the engine."""

        async def route(http: HttpRequest) -> Response:
            return await _answered(http, tell)

        return route

    def _done(
        self, model: type[M], work: Callable[[M], Awaitable[BaseModel]]
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        """A route that reads a message and answers what is made of it, unless its client leaves first."""

        async def route(http: HttpRequest) -> Response:
            async def answer() -> BaseModel:
                message = await self._read(http, model)
                with naming(name_of(message)):
                    return await _unless_gone(http, work(message))

            return await _answered(http, answer)

        return route

    async def _info(self) -> BaseModel:
        return self._engine.info

    async def _health(self, http: HttpRequest) -> Response:
        stats = await self._engine.stats()
        status = 200 if stats.state is EngineState.READY else 503
        return Response(stats.to_wire(), status, media_type="application/json")

    async def _render(self, request: Request) -> BaseModel:
        # Asked for each time: before the engine has started there is none.
        return await self._engine.renderer.render(request)

    async def _abort(self, call: AbortCall) -> BaseModel:
        return AbortAnswer(aborted=await self._engine.abort(call.request_id))

    async def _load_adapter(self, adapter: AdapterSpec) -> BaseModel:
        await self._adapter_host().load_adapter(adapter)
        return self._engine.info

    async def _unload_adapter(self, call: UnloadAdapterCall) -> BaseModel:
        await self._adapter_host().unload_adapter(call.name)
        return self._engine.info

    def _adapter_host(self) -> AdapterHost:
        if not isinstance(self._engine, AdapterHost):
            raise SageLLMError(ErrorCode.UNSUPPORTED, f"engine {self._engine.info.engine!r} takes no adapters")
        return self._engine

    async def _drain(self, http: HttpRequest) -> Response:
        await self._engine.drain()
        return Response(status_code=204)

    def _changed(
        self, change: Callable[[HttpRequest], Awaitable[None]]
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        """A route that changes what the engine holds in memory, and answers once that is done."""

        async def route(http: HttpRequest) -> Response:
            try:
                await change(http)
            except SageLLMError as error:
                return _refusal(error)
            return Response(status_code=204)

        return route

    async def _sleep(self, http: HttpRequest) -> None:
        call = await self._read(http, SleepCall)
        await sleeper(self._engine).sleep(call.level, call.mode)

    async def _wake(self, http: HttpRequest) -> None:
        await sleeper(self._engine).wake()

    async def _reload(self, http: HttpRequest) -> None:
        call = await self._read(http, ReloadCall)
        await sleeper(self._engine).reload(call.model, call.revision)

    async def _generate(self, http: HttpRequest, send: Send) -> None:
        try:
            call = await self._read(http, GenerateCall)
        except SageLLMError as error:
            await _refusal(error)(http.scope, http.receive, _versioned(send))
            return
        except ClientDisconnect:
            return
        stream = Stream(send, EVENT_STREAM_TYPE)
        await stream.open()
        with self._pulse.follow(stream), naming(name_of(call.request)):
            relay = asyncio.ensure_future(self._relay(call, stream))
            gone = asyncio.ensure_future(_disconnected(http.receive))
            try:
                await asyncio.wait([relay, gone], return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
                # Cancelling closes the engine's iterator, which aborts the request.
                relay.cancel()
                await asyncio.gather(relay, return_exceptions=True)

    async def _relay(self, call: GenerateCall, stream: Stream) -> None:
        events = self._engine.generate(call.request, call.prompt)
        try:
            async for event in events:
                await stream.line(event.to_wire())
        except Exception as error:
            log.exception("request %s", call.request.request_id)
            info = SageLLMError(ErrorCode.ENGINE_FAILED, f"{type(error).__name__}: {error}").info()
            await stream.line(ErrorEvent(request_id=call.request.request_id, error=info).to_wire())
        finally:
            await events.aclose()
        await stream.close()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless_gone(http: HttpRequest, work: Awaitable[BaseModel]) -> BaseModel:
    """What ``work`` returns; it is cancelled when the client leaves."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(http.receive))
    try:
        await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        gone.cancel()
        working.cancel()


async def _answered(http: HttpRequest, answer: Callable[[], Awaitable[BaseModel]]) -> Response:
    try:
        message = await answer()
    except SageLLMError as error:
        return _refusal(error)
    except ClientDisconnect:
        return Response(status_code=ErrorCode.CANCELLED.http_status)
    except Exception as error:
        log.exception("%s %s", http.method, http.url.path)
        return _refusal(SageLLMError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}"))
    return Response(message.model_dump_json(exclude_none=True), media_type="application/json")


def _refusal(error: SageLLMError) -> Response:
    return Response(ErrorBody(error=error.info()).to_wire(), error.http_status, media_type="application/json")


def _versioned(send: Send) -> Send:
    """Put the wire version on whatever is answered."""

    async def versioned(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))  # type: ignore[call-overload]
            message = {**message, "headers": [*headers, (VERSION_HEADER.encode(), PROTOCOL_VERSION.encode())]}
        await send(message)

    return versioned  # type: ignore[return-value]
