"""An OpenAI-compatible server of someone else as a plain ``Engine``.

Speaks ``/v1/models``, ``/v1/chat/completions``, ``/v1/completions`` and ``/v1/embeddings`` over aiohttp, and reads load
from wherever the kind of server tells it; where none does, load is what this client has there. Token ids stay unknown,
and with them log-probabilities.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from sagellm_protocol import (
    EmbedRequest,
    EmbedResponse,
    EndEvent,
    EngineCapabilities,
    EngineInfo,
    EngineState,
    EngineStats,
    ErrorCode,
    ErrorEvent,
    RenderedPrompt,
    Request,
    RequestEnding,
    SageLLMError,
    ScoreRequest,
    ScoreResponse,
    StartEvent,
    StreamEvent,
    Usage,
    Vector,
    features,
)

from .answers import Answer, error_of
from .asking import body_of
from .kinds import KINDS, kind_of, metric
from .rendering import Estimator

CONNECT_S = 5.0
ASK_S = 60.0
SILENCE_S = 300.0
"""Longest silence of a stream: such servers send no sign of life while they read a long prompt."""
LINE_LIMIT = 16 * 2**20


class ForeignEngine:
    """Implements :class:`sagellm_protocol.Engine` for an OpenAI-compatible server, all of whose models it serves.

    Args:
        url: Where it is, with or without ``/v1``.
        api_key: Sent as a bearer token.
        silence_s: Longest silence of a stream before the server is taken for dead.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for what is no HTTP address.
    """

    def __init__(self, url: str, *, api_key: str | None = None, silence_s: float = SILENCE_S) -> None:
        url = url.removeprefix("openai+")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST, f"a server's address looks like http://host:8000/v1 (got {url!r})", "url"
            )
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._silence_s = silence_s
        self._kind = KINDS["openai"]
        self._session: aiohttp.ClientSession | None = None
        self._streams: dict[str, asyncio.Event] = {}
        """Set for a stream that is to end as cancelled."""
        self._idle = asyncio.Event()
        self._ended: Counter[RequestEnding] = Counter()
        self._renderer = Estimator(self._url)
        self._state = EngineState.STARTING
        self._info = EngineInfo(
            engine_id=self._url, engine="openai", model="unknown", served_names=(), state=self._state
        )

    @property
    def info(self) -> EngineInfo:
        """What its server said of itself."""
        return self._info.model_copy(update={"state": self._state})

    @property
    def renderer(self) -> Estimator:
        """Estimates."""
        return self._renderer

    async def start(self) -> None:
        """Learn what the server serves, and of what kind it is.

        Raises:
            SageLLMError: ``UNAVAILABLE`` when nothing answers; ``UNSUPPORTED`` when what answers lists no models;
                ``UNAUTHENTICATED`` for a wrong key.
        """
        try:
            listed = await self._models()
            self._kind = kind_of(listed)
            names = tuple(str(model["id"]) for model in listed)
            lengths = [length for model in listed if (length := model.get("max_model_len"))]
            slots: int | None = None
            if self._kind.name == "llama.cpp":
                props = await self._maybe("/props")
                length = (props.get("default_generation_settings") or {}).get("n_ctx") if props else None
                lengths, slots = [length] if length else [], props.get("total_slots") if props else None
            embeds = await self._embeds(names[0])
        except SageLLMError as error:
            self._state = EngineState.ERROR
            self._info = self._info.model_copy(update={"error": error.message})
            raise
        self._info = EngineInfo(
            engine_id=self._url,
            engine=self._kind.name,
            model=names[0],
            model_key=None,
            served_names=names,
            state=EngineState.READY,
            capabilities=EngineCapabilities(
                features=self._kind.features | ({features.EMBED, features.DIMENSIONS} if embeds else set()),
                max_model_len=min(lengths, default=None),
                max_num_seqs=slots,
            ),
        )
        self._state = EngineState.READY

    async def generate(
        self, request: Request, prompt: RenderedPrompt | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        """Stream a request's events. Closing it early closes the connection, by which such servers abort."""
        ending = RequestEnding.CANCELLED
        try:
            async with aclosing(self._events(request, prompt)) as events:
                async for event in events:
                    if isinstance(event, ErrorEvent):
                        ending = RequestEnding.of(event.error.code)
                    elif isinstance(event, EndEvent):
                        ending = RequestEnding.COMPLETED
                    yield event
        finally:
            self._ended[ending] += 1

    async def _events(self, request: Request, prompt: RenderedPrompt | None) -> AsyncGenerator[StreamEvent, None]:
        name, cancelled = request.request_id, asyncio.Event()
        try:
            self._check(request)
            body = body_of(request, self._kind, self._info.capabilities.features)
        except SageLLMError as refusal:
            yield ErrorEvent(request_id=name, error=refusal.info())
            return
        counted = len((prompt or await self._renderer.render(request)).token_ids)
        answer = Answer(name, request.sampling.n, counted)
        path = "/v1/completions" if request.messages is None else "/v1/chat/completions"
        self._streams[name] = cancelled
        self._idle.clear()
        answering = False
        try:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._silence_s)
            async with self._open().post(
                self._url + path, json=body, headers=self._headers, timeout=timeout
            ) as response:
                await _refuse(response)
                answering = True
                yield StartEvent(request_id=name, prompt_tokens=counted)
                closing = asyncio.create_task(_close_when(cancelled, response))
                try:
                    async with aclosing(_data(response.content)) as pieces:
                        async for data in pieces:
                            for event in answer.take(data):
                                yield event
                finally:
                    closing.cancel()
            if not cancelled.is_set():
                yield answer.end()
                return
            error = SageLLMError(ErrorCode.CANCELLED, "the request was aborted")
        except (aiohttp.ClientError, OSError, RuntimeError, asyncio.TimeoutError) as failure:
            error = self._broken(failure, answering)
        except SageLLMError as told:
            error = told
        finally:
            del self._streams[name]
            if not self._streams:
                self._idle.set()
        if cancelled.is_set():
            error = SageLLMError(ErrorCode.CANCELLED, "the request was aborted")
        yield ErrorEvent(request_id=name, error=error.info())

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Have the server embed texts.

        Raises:
            SageLLMError: ``UNSUPPORTED`` when it does not; what it refuses.
        """
        self._check(request)
        features.refuse_unknown(request, self._info.capabilities.features)
        if not request.normalize or request.truncate:
            name = "normalize" if not request.normalize else "truncate"
            raise SageLLMError(ErrorCode.UNSUPPORTED, f"a server of kind {self._kind.name} does not take {name}", name)
        body: dict[str, Any] = {"model": request.model, "input": [_input(one) for one in request.inputs]}
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        told = await self._ask("POST", "/v1/embeddings", body)
        try:
            vectors = tuple(Vector(index=one["index"], values=tuple(one["embedding"])) for one in told["data"])
            usage = Usage(prompt_tokens=(told.get("usage") or {}).get("prompt_tokens") or 0)
        except (KeyError, TypeError, ValueError) as error:
            raise SageLLMError(ErrorCode.ENGINE_FAILED, f"{self._url} sent what are no embeddings") from error
        return EmbedResponse(request_id=request.request_id, model=request.model, vectors=vectors, usage=usage)

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Refused: OpenAI's API has no words for it.

        Raises:
            SageLLMError: ``UNSUPPORTED``.
        """
        features.refuse_unknown(request, self._info.capabilities.features)
        raise SageLLMError(ErrorCode.UNSUPPORTED, "OpenAI-compatible servers score nothing")

    async def abort(self, request_id: str) -> bool:
        """End a request here, and by closing its connection there."""
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.set()
        return stream is not None

    async def stats(self) -> EngineStats:
        """Load as the server tells it, else as this client knows it.

        Raises:
            SageLLMError: ``UNAVAILABLE`` when it does not answer.
        """
        if self._state in (EngineState.STOPPED, EngineState.STARTING):
            return EngineStats(state=self._state)
        running, waiting = len(self._streams), 0
        text = await self._metrics() if self._kind.running else None
        told = None if text is None else metric(text, self._kind.running)
        if text is not None and told is not None:
            running, waiting = int(told), int(metric(text, self._kind.waiting) or 0)
        elif self._kind.name == "llama.cpp" and isinstance(slots := await self._maybe("/slots"), list):
            running = sum(bool(slot.get("is_processing")) for slot in slots)
        else:
            # Nothing tells of load: that it answers is what can be known.
            await self._models()
        return EngineStats(
            state=self._state,
            running=running,
            waiting=waiting,
            **{ending.value: self._ended[ending] for ending in RequestEnding},
        )

    async def drain(self) -> None:
        """Take nothing new, and return once what is in flight has ended. The server goes on for others."""
        if self._state is EngineState.READY:
            self._state = EngineState.DRAINING
        if self._streams:
            await self._idle.wait()

    async def stop(self) -> None:
        """Let go of the server, which goes on; what this client has in flight there is aborted."""
        self._state = EngineState.STOPPED
        for stream in self._streams.values():
            stream.set()
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _check(self, request: Request | EmbedRequest) -> None:
        if self._state is not EngineState.READY:
            raise SageLLMError(ErrorCode.UNAVAILABLE, f"the client of {self._url} is {self._state.value}")
        if request.model not in self._info.served_names:
            known = ", ".join(self._info.served_names)
            raise SageLLMError(
                ErrorCode.MODEL_NOT_FOUND, f"no model {request.model!r} at {self._url}; there are: {known}", "model"
            )
        if request.request_id in self._streams:
            raise SageLLMError(ErrorCode.CONFLICT, f"request {request.request_id!r} is in flight already", "request_id")

    async def _models(self) -> list[dict[str, Any]]:
        told = await self._ask("GET", "/v1/models")
        listed = told.get("data") if isinstance(told, dict) else None
        if not listed or not all(isinstance(model, dict) and "id" in model for model in listed):
            raise SageLLMError(ErrorCode.UNSUPPORTED, f"{self._url} lists no models as OpenAI's API does")
        return listed  # type: ignore[no-any-return]

    async def _embeds(self, model: str) -> bool:
        """Whether it embeds, which no server says but by doing it."""
        if self._kind.name == "ollama":
            # Would load the model, which may take minutes; each of its models can be asked.
            return True
        try:
            await self._ask("POST", "/v1/embeddings", {"model": model, "input": ["a"]})
        except SageLLMError:
            return False
        return True

    async def _metrics(self) -> str | None:
        """Prometheus' text, unless the server has none: llama.cpp's is there by choice."""
        status, body = await self._exchange("GET", "/metrics", None)
        return body.decode(errors="replace") if status == 200 else None

    async def _maybe(self, path: str) -> Any:
        """What is there, if it is."""
        status, body = await self._exchange("GET", path, None)
        return _json(body) if status == 200 else None

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        status, answer = await self._exchange(method, path, body)
        if status >= 300:
            raise error_of(status, answer)
        return _json(answer)

    async def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=ASK_S, sock_connect=CONNECT_S)
        try:
            async with self._open().request(
                method, self._url + path, json=body, headers=self._headers, timeout=timeout
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as failure:
            raise self._broken(failure, answering=False) from failure

    def _open(self) -> aiohttp.ClientSession:
        if self._state is EngineState.STOPPED:
            raise SageLLMError(ErrorCode.UNAVAILABLE, f"the client of {self._url} was stopped")
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self._session

    def _broken(self, failure: Exception, answering: bool) -> SageLLMError:
        said = str(failure) or type(failure).__name__
        if answering:
            return SageLLMError(ErrorCode.ENGINE_FAILED, f"the server at {self._url} broke off: {said}")
        return SageLLMError(ErrorCode.UNAVAILABLE, f"no server can be reached at {self._url}: {said}")


def _input(one: str | tuple[int, ...]) -> str | list[int]:
    return one if isinstance(one, str) else list(one)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise SageLLMError(ErrorCode.UNSUPPORTED, f"what answers speaks no JSON: {body[:80]!r}") from error


async def _refuse(response: aiohttp.ClientResponse) -> None:
    if response.status >= 300:
        raise error_of(response.status, await response.read(), response.headers.get("retry-after"))


async def _close_when(cancelled: asyncio.Event, response: aiohttp.ClientResponse) -> None:
    await cancelled.wait()
    response.close()


async def _data(stream: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
    """The data of server-sent events, up to the one that says that there are no more, or to the end."""
    rest = b""
    while data := await stream.readany():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                told = line[5:].strip()
                if told == b"[DONE]":
                    return
                yield told
        if len(rest) > LINE_LIMIT:
            raise SageLLMError(ErrorCode.ENGINE_FAILED, f"a server sent a line of more than {LINE_LIMIT} bytes")
