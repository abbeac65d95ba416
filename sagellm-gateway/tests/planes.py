"""Control planes for tests: one around a single engine, and one that says what it is told to say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

from sagellm_protocol import (
    EmbedRequest,
    EmbedResponse,
    Engine,
    EngineInfo,
    EngineRecord,
    EngineState,
    EngineStats,
    ErrorCode,
    ErrorEvent,
    ModelInfo,
    PlaneStatus,
    Request,
    SageLLMError,
    ScoreRequest,
    ScoreResponse,
    StreamEvent,
)


class SoloPlane:
    """Serves through one engine, with nothing between."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def start(self) -> None:
        await self.engine.start()

    async def stop(self, drain_s: float | None = None) -> None:
        await self.engine.stop()

    async def submit(self, request: Request) -> AsyncGenerator[StreamEvent, None]:
        if request.model not in self.engine.info.served_names:
            error = SageLLMError(ErrorCode.MODEL_NOT_FOUND, f"no model is named {request.model!r}", "model")
            yield ErrorEvent(request_id=request.request_id, error=error.info())
            return
        events = self.engine.generate(request)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        return await self.engine.embed(request)

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        return await self.engine.score(request)

    async def models(self) -> Sequence[ModelInfo]:
        info = self.engine.info
        return [
            ModelInfo(
                name=name,
                engines=1,
                ready=int(info.state is EngineState.READY),
                mock=info.mock,
                features=info.capabilities.features,
                max_model_len=info.capabilities.max_model_len,
                created_s=1_700_000_000,
            )
            for name in info.served_names
        ]

    async def status(self) -> PlaneStatus:
        info = self.engine.info
        ready = info.state is EngineState.READY
        return PlaneStatus(
            ready=ready,
            reason=None if ready else f"engine {info.engine_id} is {info.state.value}: {info.error}",
            engines=(EngineRecord(info=info, stats=await self.engine.stats()),),
        )


Script = Callable[[Request], AsyncIterator[StreamEvent]]


class ScriptedPlane:
    """Answers every request with the events of a script, and keeps what it was asked."""

    def __init__(self, script: Script | None = None, **stats: Any) -> None:
        self.script = script
        self.asked: list[Request] = []
        self.closed = asyncio.Event()
        self.pulled = 0
        self.stats = stats

    async def start(self) -> None: ...

    async def stop(self, drain_s: float | None = None) -> None: ...

    async def submit(self, request: Request) -> AsyncGenerator[StreamEvent, None]:
        self.asked.append(request)
        assert self.script is not None
        try:
            async for event in self.script(request):
                self.pulled += 1
                yield event
        finally:
            self.closed.set()

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        raise SageLLMError(ErrorCode.UNSUPPORTED, f"model {request.model!r} makes no embeddings", "model")

    async def models(self) -> Sequence[ModelInfo]:
        return [
            ModelInfo(name="scripted", engines=1, ready=1, features=frozenset({"generate"}), created_s=int(time.time()))
        ]

    async def status(self) -> PlaneStatus:
        info = EngineInfo(
            engine_id="e0", engine="scripted", model="scripted", served_names=("scripted",), state=EngineState.READY
        )
        stats = EngineStats(state=EngineState.READY, **self.stats)
        return PlaneStatus(ready=True, engines=(EngineRecord(info=info, stats=stats),))
