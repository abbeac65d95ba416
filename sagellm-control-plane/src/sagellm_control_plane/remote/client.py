"""An engine on another host, or in another process, as a plain ``Engine``.

Speaks :mod:`sagellm_protocol.remote` over aiohttp, which costs a fraction of httpx a request and a streamed chunk
(``benchmarks/http_clients.py`` measures it). Whatever goes wrong on the way is a typed error: nothing that answers is
``UNAVAILABLE`` and may be retried, a stream that breaks off or falls silent is ``ENGINE_FAILED`` and never a finish.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
from pydantic import BaseModel, ValidationError

from sagellm_protocol import (
    PROTOCOL_VERSION,
    AdapterSpec,
    EmbedRequest,
    EmbedResponse,
    EngineInfo,
    EngineState,
    EngineStats,
    ErrorCode,
    ErrorEvent,
    RenderedPrompt,
    Request,
    SageLLMError,
    ScoreRequest,
    ScoreResponse,
    SleepMode,
    StreamEvent,
    is_terminal,
    parse_event,
)
from sagellm_protocol.interfaces import check_sleep
from sagellm_protocol.remote import (
    PREFIX,
    SILENCE_LIMIT_S,
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

from .streams import CLIENT_IDLE_S

M = TypeVar("M", bound=BaseModel)
CONNECT_S = 5.0
ASK_S = 60.0
"""Longest for calls that do work but stream nothing: rendering, embedding, scoring."""
LINE_LIMIT = 64 * 2**20
"""Bytes of the longest event taken from a peer."""


class RemoteEngine:
    """Implements :class:`sagellm_protocol.Engine` for an engine server.

    Args:
        url: Where it is, without the prefix of the engine protocol (``http://host:8900``).
        api_key: The key it was started with.
        silence_s: Longest silence of a stream before the engine is taken for dead.
        ask_s: Longest for calls that stream nothing.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for what is no HTTP address.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, silence_s: float = SILENCE_LIMIT_S, ask_s: float = ASK_S
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST, f"an engine's address looks like http://host:8900 (got {url!r})", "url"
            )
        self._url = url.rstrip("/")
        self._base = self._url + PREFIX
        self._headers = {VERSION_HEADER: PROTOCOL_VERSION}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._silence_s = silence_s
        self._ask_s = ask_s
        self._session: aiohttp.ClientSession | None = None
        self._stale = False
        # Stopped on this side: a server that says of itself that it has stopped may yet come back.
        self._closed = False
        self._info = EngineInfo(
            engine_id=self._url, engine="remote", model="unknown", served_names=(), state=EngineState.STARTING
        )

    @property
    def info(self) -> EngineInfo:
        """What it said of itself when it was last asked."""
        return self._info

    @property
    def renderer(self) -> RemoteEngine:
        """Itself: the server renders."""
        return self

    async def start(self) -> None:
        """Reach the server, which must be an engine server of ours, and learn what it serves.

        Raises:
            SageLLMError: ``UNAVAILABLE`` when nothing answers, or what answers does not serve; ``UNSUPPORTED`` for
                another wire version or for a server of another kind; ``UNAUTHENTICATED`` for a wrong key.
        """
        try:
            info = await self._ask("GET", "/info", EngineInfo)
        except SageLLMError as error:
            self._info = self._info.model_copy(update={"state": EngineState.ERROR, "error": error.message})
            raise
        self._info = info
        if info.state is not EngineState.READY:
            reason = f": {info.error}" if info.error else ""
            raise SageLLMError(ErrorCode.UNAVAILABLE, f"the engine at {self._url} is {info.state.value}{reason}")

    async def render(self, request: Request) -> RenderedPrompt:
        """Have the server render a prompt."""
        return await self._ask("POST", "/render", RenderedPrompt, request.to_wire())

    async def generate(
        self, request: Request, prompt: RenderedPrompt | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        """Stream a request's events. Closing it early closes the connection, which aborts the request there."""
        if self._closed or self._info.state is EngineState.STARTING:
            error = SageLLMError(ErrorCode.UNAVAILABLE, f"the client of {self._url} is {self._info.state.value}")
            yield ErrorEvent(request_id=request.request_id, error=error.info())
            return
        body = GenerateCall(request=request, prompt=prompt).to_wire()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._silence_s)
        answering = False
        try:
            async with self._open().post(
                self._base + "/generate", data=body, headers=self._headers, timeout=timeout
            ) as response:
                await self._check(response)
                answering = True
                async with aclosing(_lines(response.content)) as lines:
                    async for line in lines:
                        event = self._event(line)
                        yield event
                        if is_terminal(event):
                            return
            error = SageLLMError(
                ErrorCode.ENGINE_FAILED, f"the engine at {self._url} closed the stream before the answer was complete"
            )
        except aiohttp.ConnectionTimeoutError as failure:
            error = self._unreachable(failure)
        except asyncio.TimeoutError:
            error = SageLLMError(
                ErrorCode.ENGINE_FAILED, f"the engine at {self._url} has been silent for {self._silence_s:g} s"
            )
        except (aiohttp.ClientError, OSError) as failure:
            error = self._unreachable(failure)
            if answering:
                error = SageLLMError(ErrorCode.ENGINE_FAILED, f"the engine at {self._url} broke off: {_said(failure)}")
        except SageLLMError as refusal:
            error = refusal
        if self._was_closed():
            error = SageLLMError(ErrorCode.CANCELLED, f"the client of {self._url} was stopped")
        yield ErrorEvent(request_id=request.request_id, error=error.info())

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Have the server embed texts."""
        return await self._ask("POST", "/embed", EmbedResponse, request.to_wire())

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Have the server score documents."""
        return await self._ask("POST", "/score", ScoreResponse, request.to_wire())

    async def abort(self, request_id: str) -> bool:
        """End a request there as cancelled."""
        answer = await self._ask("POST", "/abort", AbortAnswer, AbortCall(request_id=request_id).to_wire())
        return answer.aborted

    async def stats(self) -> EngineStats:
        """Load and counters; what the server says of itself is taken in too when that may have changed.

        Raises:
            SageLLMError: ``UNAVAILABLE`` when the server does not answer.
        """
        if self._closed:
            return EngineStats(state=EngineState.STOPPED)
        try:
            stats = await self._ask("GET", "/stats", EngineStats)
        except SageLLMError:
            # What answers next may be another engine, started anew at the same address.
            self._stale = True
            raise
        known = None if self._info.adapters is None else len(self._info.adapters)
        if self._stale or stats.state is not self._info.state or stats.adapters != known:
            self._info = await self._ask("GET", "/info", EngineInfo)
            self._stale = False
        return stats

    async def load_adapter(self, adapter: AdapterSpec) -> None:
        """Have the server's engine serve a LoRA adapter, which is read on its host."""
        self._info = await self._ask("POST", "/adapters/load", EngineInfo, adapter.to_wire())

    async def unload_adapter(self, name: str) -> None:
        """Have it serve one no more."""
        self._info = await self._ask("POST", "/adapters/unload", EngineInfo, UnloadAdapterCall(name=name).to_wire())

    async def drain(self) -> None:
        """Have the server drain; returns once it has, however long that takes."""
        await self._exchange("POST", "/drain", None, None)
        await self.stats()

    async def sleep(self, level: int = 1, mode: SleepMode = "wait") -> None:
        """Have the server's engine give memory up; returns once it has, however long requests in flight take."""
        check_sleep(level, mode)
        await self._change("/sleep", SleepCall(level=level, mode=mode).to_wire())

    async def wake(self) -> None:
        """Have the server's engine be ready again."""
        await self._change("/wake", None)

    async def reload(self, model: str, revision: str | None = None) -> None:
        """Have the server's engine take other weights, found where the server runs."""
        await self._change("/reload", ReloadCall(model=model, revision=revision).to_wire())

    async def _change(self, path: str, body: bytes | None) -> None:
        try:
            await self._exchange("POST", path, body, None)
        finally:
            self._stale = True
        await self.stats()

    async def stop(self) -> None:
        """Let go of the server, which goes on; what this client has in flight there is aborted."""
        self._closed = True
        self._info = self._info.model_copy(update={"state": EngineState.STOPPED})
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _was_closed(self) -> bool:
        return self._closed

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise SageLLMError(ErrorCode.UNAVAILABLE, f"the client of {self._url} was stopped")
        if self._session is None:
            # Limits are the plane's business; a pool that made requests wait would hide them from it.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=CLIENT_IDLE_S), auto_decompress=False
            )
        return self._session

    async def _ask(self, method: str, path: str, model: type[M], body: bytes | None = None) -> M:
        answer = await self._exchange(method, path, body, self._ask_s)
        try:
            return model.model_validate_json(answer)
        except ValidationError as error:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                f"what answers {path} at {self._url} is no engine server of isagellm: {_said(error)}",
            ) from error

    async def _exchange(self, method: str, path: str, body: bytes | None, limit_s: float | None) -> bytes:
        timeout = aiohttp.ClientTimeout(total=limit_s, sock_connect=CONNECT_S)
        try:
            async with self._open().request(
                method, self._base + path, data=body, headers=self._headers, timeout=timeout
            ) as response:
                await self._check(response)
                return await response.read()
        except asyncio.TimeoutError:
            raise SageLLMError(
                ErrorCode.UNAVAILABLE, f"the engine at {self._url} did not answer {path} within {limit_s} s"
            ) from None
        except (aiohttp.ClientError, OSError) as failure:
            raise self._unreachable(failure) from failure

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        """Raise what the server refused with; a server that is none of ours is told from an engine's own 404."""
        if response.status < 300:
            check_version(response.headers.get(VERSION_HEADER))
            return
        body = await response.read()
        try:
            error = ErrorBody.model_validate_json(body).error
        except ValidationError:
            known = await self._kind()
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                f"{self._url} answered {response.status} and is no engine server of isagellm{known};"
                " start one with: sagellm engine MODEL",
            ) from None
        if error.code is ErrorCode.UNAUTHENTICATED:
            raise SageLLMError(
                error.code,
                f"the engine at {self._url} wants the key that it was started with, and was given"
                f" {'another' if 'Authorization' in self._headers else 'none'} (sagellm serve: --attach-key)",
            )
        raise SageLLMError.from_info(error)

    async def _kind(self) -> str:
        """What else answers there, as far as it can be told."""
        try:
            async with self._open().get(
                self._url + "/v1/models", timeout=aiohttp.ClientTimeout(total=CONNECT_S)
            ) as response:
                if response.status in (200, 401, 403):
                    return ", but an OpenAI-compatible server"
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return ""
        return ""

    def _event(self, line: bytes) -> StreamEvent:
        try:
            return parse_event(line)
        except ValidationError as error:
            raise SageLLMError(
                ErrorCode.ENGINE_FAILED, f"the engine at {self._url} sent what is no event: {_said(error)}"
            ) from error

    def _unreachable(self, failure: Exception) -> SageLLMError:
        return SageLLMError(ErrorCode.UNAVAILABLE, f"no engine can be reached at {self._url}: {_said(failure)}")


async def _lines(stream: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    """Lines that are not blank. A last line without its end is dropped: it was cut off."""
    rest = b""
    while data := await _some(stream):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            if line.strip():
                yield line
        if len(rest) > LINE_LIMIT:
            raise SageLLMError(ErrorCode.ENGINE_FAILED, f"an engine sent a line of more than {LINE_LIMIT} bytes")


async def _some(stream: aiohttp.StreamReader) -> bytes:
    try:
        return await stream.readany()
    except RuntimeError as failure:
        # What aiohttp raises for a connection that was closed on this side while its reader was away.
        raise aiohttp.ClientConnectionError(str(failure)) from failure


def _said(error: Exception) -> str:
    """What went wrong, in the system's words where it was the system that said so."""
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        return os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror or str(cause)
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection ended before the answer did"
    text = str(error).splitlines()
    return text[0] if text else type(error).__name__
