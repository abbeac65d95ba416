"""Fakes at the lowest public seam: an engine that plays a script, and a control plane over engines in this process.

Knows nothing of routing policies, queues or other processes.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing

from sagellm_protocol import features, plugins
from sagellm_protocol.engine import AdapterSpec, EngineCapabilities, EngineInfo, EngineSpec, EngineState, EngineStats
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.events import EndEvent, ErrorEvent, StreamEvent
from sagellm_protocol.interfaces import (
    AdapterHost,
    Engine,
    EngineRecord,
    ModelInfo,
    PlaneStatus,
    RenderedPrompt,
    Renderer,
    RequestEnding,
)
from sagellm_protocol.requests import EmbedRequest, Request, ScoreRequest
from sagellm_protocol.responses import EmbedResponse, ScoreResponse

from .mock.text import MockRenderer


class ScriptedEngine:
    """An engine that answers each request with the events a script gives for it, under the request's id.

    For what the mock engine does not say: tool calls, reasoning, log-probabilities, broken streams.

    Args:
        script: Events of a request; also what it raises, if it raises.
        model: Name it serves.
        offers: Features it claims; all of them by default.
    """

    def __init__(
        self,
        script: Callable[[Request], Iterable[StreamEvent]],
        model: str = "scripted",
        offers: Iterable[str] = features.ALL,
    ) -> None:
        self._script = script
        self._model = model
        self._offers = frozenset(offers)
        self._state = EngineState.STARTING
        self._renderer = MockRenderer(f"scripted:{model}", 16, 32768)
        self.requests: list[Request] = []
        """What it was asked, in order."""
        self.aborted: list[str] = []
        """Ids of requests whose stream was closed early, or aborted."""

    @property
    def info(self) -> EngineInfo:
        """What it claims."""
        return EngineInfo(
            engine_id=f"scripted-{self._model}",
            engine="scripted",
            model=self._model,
            served_names=(self._model,),
            state=self._state,
            mock=True,
            capabilities=EngineCapabilities(features=self._offers),
        )

    @property
    def renderer(self) -> Renderer:
        """Renders bytes."""
        return self._renderer

    async def start(self) -> None:
        """Serve at once."""
        self._state = EngineState.READY

    async def generate(
        self, request: Request, prompt: RenderedPrompt | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        """Play the script."""
        self.requests.append(request)
        finished = False
        try:
            for event in self._script(request):
                finished = isinstance(event, EndEvent | ErrorEvent)
                yield event.model_copy(update={"request_id": request.request_id})
        finally:
            if not finished:
                self.aborted.append(request.request_id)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Nothing is scripted for embeddings."""
        raise SageLLMError(ErrorCode.UNSUPPORTED, "a scripted engine makes no embeddings")

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Nothing is scripted for scores."""
        raise SageLLMError(ErrorCode.UNSUPPORTED, "a scripted engine does not score")

    async def abort(self, request_id: str) -> bool:
        """Note it down; a script goes on as it was written."""
        self.aborted.append(request_id)
        return True

    async def stats(self) -> EngineStats:
        """Its state and nothing else."""
        return EngineStats(state=self._state)

    async def drain(self) -> None:
        """Take nothing new."""
        self._state = EngineState.DRAINING

    async def stop(self) -> None:
        """Stop."""
        self._state = EngineState.STOPPED


class FakeControlPlane:
    """A control plane over engines in this process, each request going to the first that serves its model.

    It counts endings, mints ids and cancels as a real one does; it has no queue, and attaches to nothing.

    Args:
        engines: Engines it starts with, started by :meth:`start` and stopped by :meth:`stop`.
    """

    def __init__(self, engines: Engine | Sequence[Engine] = ()) -> None:
        given = engines if isinstance(engines, Sequence) else (engines,)
        self._engines: dict[str, tuple[Engine, str | None]] = {
            engine.info.engine_id: (engine, None) for engine in given
        }
        self._in_flight: dict[str, tuple[str, Engine]] = {}
        self._ended: dict[RequestEnding, int] = dict.fromkeys(RequestEnding, 0)
        self._accepted = 0
        self._refused_early = 0
        self._running = False
        self._created_s = int(time.time())

    async def start(self) -> None:
        """Start its engines; unlike a real plane, wait for them."""
        self._running = True
        for engine, _ in self._engines.values():
            await engine.start()

    async def stop(self, drain_s: float | None = None) -> None:
        """Cancel what is in flight and stop every engine; ``drain_s`` is not waited for."""
        self._running = False
        for engine, _ in self._engines.values():
            await engine.stop()

    async def submit(self, request: Request) -> AsyncGenerator[StreamEvent, None]:
        """Pass a request on, under an id of its own."""
        try:
            engine = self._engine_for(request)
        except SageLLMError as error:
            self._refused_early += 1
            yield ErrorEvent(request_id=request.request_id, error=error.info())
            return
        attempt = request.model_copy(update={"request_id": f"attempt-{uuid.uuid4().hex}"})
        self._accepted += 1
        self._in_flight[attempt.request_id] = (request.request_id, engine)
        try:
            async with aclosing(engine.generate(attempt)) as events:
                async for event in events:
                    if isinstance(event, EndEvent):
                        self._end(attempt, RequestEnding.COMPLETED)
                    elif isinstance(event, ErrorEvent):
                        self._end(attempt, RequestEnding.of(event.error.code))
                    yield event.model_copy(update={"request_id": request.request_id})
        finally:
            self._end(attempt, RequestEnding.CANCELLED)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Pass a request on."""
        return await self._engine_for(request).embed(request)

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Pass a request on."""
        return await self._engine_for(request).score(request)

    async def cancel(self, request_id: str) -> bool:
        """Abort every attempt of a request."""
        attempts = [(id, engine) for id, (asked, engine) in self._in_flight.items() if asked == request_id]
        for attempt, engine in attempts:
            await engine.abort(attempt)
        return bool(attempts)

    async def render(self, request: Request) -> RenderedPrompt:
        """Render with the renderer of the engine that would serve it."""
        return await self._engine_for(request).renderer.render(request)

    async def models(self) -> Sequence[ModelInfo]:
        """Served names of its engines."""
        by_name: dict[str, list[EngineInfo]] = {}
        for engine, _ in self._engines.values():
            for name in engine.info.names:
                by_name.setdefault(name, []).append(engine.info)
        return [
            ModelInfo(
                name=name,
                parent=None if name in infos[0].served_names else infos[0].served_names[0],
                engines=len(infos),
                ready=sum(info.state is EngineState.READY for info in infos),
                mock=all(info.mock for info in infos),
                features=frozenset.union(*(info.capabilities.features for info in infos)),
                max_model_len=infos[0].capabilities.max_model_len,
                created_s=self._created_s,
            )
            for name, infos in by_name.items()
        ]

    async def status(self) -> PlaneStatus:
        """Its engines and counts."""
        ready = any(engine.info.state is EngineState.READY for engine, _ in self._engines.values())
        return PlaneStatus(
            ready=ready and self._running,
            reason=None if ready and self._running else "no engine is ready",
            engines=tuple([await self._record(engine, launcher) for engine, launcher in self._engines.values()]),
            in_flight=len(self._in_flight),
            accepted=self._accepted,
            ended=dict(self._ended),
            refused_early=self._refused_early,
        )

    async def start_engine(
        self, spec: EngineSpec, launcher: str = "local", engine_id: str | None = None
    ) -> EngineRecord:
        """Make an engine in this process, whatever the launcher's name, and start it."""
        if engine_id in self._engines:
            raise SageLLMError(ErrorCode.CONFLICT, f"there is an engine with id {engine_id!r}", "engine_id")
        engine: Engine = plugins.load(plugins.ENGINES, spec.engine)(spec)
        await engine.start()
        self._engines[engine_id or engine.info.engine_id] = (engine, launcher)
        return await self._record(engine, launcher, engine_id)

    async def attach_engine(self, url: str, engine_id: str | None = None, api_key: str | None = None) -> EngineRecord:
        """Reach nothing: a fake opens no connections."""
        raise SageLLMError(ErrorCode.UNAVAILABLE, f"nothing that we know answers at {url}", "url")

    async def drain_engine(self, engine_id: str) -> None:
        """Drain an engine."""
        await self._named(engine_id).drain()

    async def stop_engine(self, engine_id: str, drain_s: float | None = None) -> None:
        """Stop an engine and forget it."""
        engine = self._named(engine_id)
        await engine.stop()
        del self._engines[engine_id]

    async def load_adapter(self, adapter: AdapterSpec) -> None:
        """Have its first engine that takes adapters serve one."""
        await self._adapter_host().load_adapter(adapter)

    async def unload_adapter(self, name: str) -> None:
        """Have that engine serve one no more."""
        await self._adapter_host().unload_adapter(name)

    def _adapter_host(self) -> AdapterHost:
        for engine, _ in self._engines.values():
            if isinstance(engine, AdapterHost):
                return engine
        raise SageLLMError(ErrorCode.UNSUPPORTED, "no engine here takes adapters")

    def _named(self, engine_id: str) -> Engine:
        if engine_id not in self._engines:
            known = ", ".join(self._engines) or "none"
            raise SageLLMError(ErrorCode.NOT_FOUND, f"no engine {engine_id!r}; there are: {known}", "engine_id")
        return self._engines[engine_id][0]

    def _engine_for(self, request: Request | EmbedRequest | ScoreRequest) -> Engine:
        if not self._running:
            raise SageLLMError(ErrorCode.UNAVAILABLE, "the control plane is not running")
        engines = [engine for engine, _ in self._engines.values() if request.model in engine.info.names]
        if not engines:
            names = sorted({name for engine, _ in self._engines.values() for name in engine.info.names})
            raise SageLLMError(
                ErrorCode.MODEL_NOT_FOUND,
                f"no model {request.model!r} here; there are: {', '.join(names) or 'none'}",
                "model",
            )
        ready = [engine for engine in engines if engine.info.state is EngineState.READY]
        if not ready:
            raise SageLLMError(ErrorCode.UNAVAILABLE, f"no engine that serves {request.model!r} is ready")
        features.refuse_unknown(request, ready[0].info.capabilities.features)
        return ready[0]

    def _end(self, attempt: Request, ending: RequestEnding) -> None:
        if self._in_flight.pop(attempt.request_id, None) is not None:
            self._ended[ending] += 1

    async def _record(self, engine: Engine, launcher: str | None, engine_id: str | None = None) -> EngineRecord:
        known = next((id for id, (other, _) in self._engines.items() if other is engine), engine_id)
        info = engine.info if known is None else engine.info.model_copy(update={"engine_id": known})
        return EngineRecord(
            info=info,
            stats=await engine.stats(),
            launcher=launcher,
            in_flight=sum(other is engine for _, other in self._in_flight.values()),
        )
