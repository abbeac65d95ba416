"""The Python interfaces that our packages, and those of others, meet through.

Implementations are found by entry point (:mod:`sagellm_protocol.plugins`) or passed in. Each has a conformance suite in
:mod:`sagellm_protocol.testing`. Provisional until a GPU backend and a two-process executor have passed theirs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from enum import Enum
from typing import Literal, Protocol, get_args, runtime_checkable

from pydantic import Field

from ._wire import Ask, Report
from .blocks import BlockHash, KVEventBatch
from .engine import AdapterSpec, EngineInfo, EngineSpec, EngineState, EngineStats
from .errors import ErrorCode, SageLLMError
from .events import StreamEvent
from .requests import EmbedRequest, Request, ScoreRequest
from .responses import EmbedResponse, ScoreResponse
from .sampling import TokenId


class RenderedPrompt(Ask):
    """A prompt as the model will read it."""

    token_ids: tuple[TokenId, ...] = Field(min_length=1)
    text: str | None = None
    """The text it was made of; absent when the caller gave tokens."""
    block_size: int = Field(gt=0)
    block_hashes: tuple[BlockHash, ...] = ()
    """Of the full blocks, by :mod:`sagellm_protocol.blocks`."""


class Renderer(Protocol):
    """Turns requests into tokens. One a model; needs neither torch nor a running engine."""

    async def render(self, request: Request) -> RenderedPrompt:
        """Apply the chat template, tokenise, truncate and hash.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` for what the template or vocabulary refuses; ``CONTEXT_LENGTH_EXCEEDED``,
                naming both lengths, when the prompt leaves no room for a token or for the output asked for.
        """
        ...


class Engine(Protocol):
    """One model that answers, wherever it runs.

    Made by ``create(spec: EngineSpec) -> Engine``, an entry point of the group ``sagellm.engines``; making one is cheap
    and loads nothing.
    """

    @property
    def info(self) -> EngineInfo:
        """What it says of itself now. Cheap, never blocks."""
        ...

    @property
    def renderer(self) -> Renderer:
        """Renders prompts for this engine's model.

        Raises:
            SageLLMError: ``UNAVAILABLE`` until the engine has started.
        """
        ...

    async def start(self) -> None:
        """Load, and return once requests can be served.

        Raises:
            SageLLMError: With the root cause and its fix. ``info.state`` is then ``ERROR``.
        """
        ...

    def generate(self, request: Request, prompt: RenderedPrompt | None = None) -> AsyncGenerator[StreamEvent, None]:
        """Work on a request; yields its events as :mod:`sagellm_protocol.events` orders them.

        Errors of the request come as its terminal event, also those found before any work. Closing the iterator before
        its terminal event aborts the request: by the end of the step in which the abort arrives its blocks are free.

        Refused are: everything while the engine is not ``READY`` (``UNAVAILABLE``), a model that is none of its
        ``served_names`` (``MODEL_NOT_FOUND``), a feature it does not offer (``UNSUPPORTED``, by
        :func:`~sagellm_protocol.features.refuse_unknown`), an id in flight (``CONFLICT``), and what its renderer
        refuses. A refusal is the stream's only event, and counts as ``refused`` in its stats.

        Args:
            request: Its id is unused among the requests in flight here.
            prompt: What :attr:`renderer` made of it; rendered here when absent.
        """
        ...

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Vectors of texts.

        Raises:
            SageLLMError: ``UNSUPPORTED`` when the model makes none.
        """
        ...

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Relevance of documents to a query.

        Raises:
            SageLLMError: ``UNSUPPORTED`` when the model does not score.
        """
        ...

    async def abort(self, request_id: str) -> bool:
        """End a request as cancelled. False when none of that id is in flight."""
        ...

    async def stats(self) -> EngineStats:
        """Load and counters. Costs no tokens; a dead core shows as state ``ERROR`` rather than as an exception."""
        ...

    async def drain(self) -> None:
        """Take nothing new (``UNAVAILABLE``) and return once everything in flight has ended."""
        ...

    async def stop(self) -> None:
        """End what is in flight as cancelled, and release everything. Safe to call twice, and in any state."""
        ...


@runtime_checkable
class KVEventSource(Protocol):
    """What an engine also is when it tells what its prefix cache holds; a router asks with ``isinstance``."""

    def kv_events(self) -> AsyncIterator[KVEventBatch]:
        """Changes from this call on, at most one batch a step; ends when the engine stops.

        A reader that falls behind loses batches, and sees it by the gap in their ``sequence``.
        """
        ...


SleepMode = Literal["wait", "abort"]
"""What becomes of requests in flight when an engine goes to sleep: they finish first, or end as cancelled."""


def check_sleep(level: int, mode: str) -> None:
    """Refuse a level or a mode that there is not.

    Raises:
        SageLLMError: ``INVALID_REQUEST``.
    """
    if level not in (1, 2):
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"level={level}: 1 gives up the cache, 2 gives up weights, too", "level"
        )
    if mode not in get_args(SleepMode):
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"mode={mode!r}: wait for requests in flight, or abort them", "mode"
        )


@runtime_checkable
class SleepControl(Protocol):
    """What an engine also is when it can give up its memory for a while, and change its weights in place."""

    async def sleep(self, level: int = 1, mode: SleepMode = "wait") -> None:
        """Give memory up; ``info.state`` is ``SLEEPING`` from this call on, and new requests are ``UNAVAILABLE``.

        Args:
            level: 1 gives up the cache and keeps weights in host memory; 2 gives up weights, too.
            mode: What becomes of requests in flight.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` for another level or mode; ``CONFLICT`` for an engine that is not ready.
        """
        ...

    async def wake(self) -> None:
        """Be ready again, with an empty cache. Does nothing for an engine that is.

        Raises:
            SageLLMError: ``CONFLICT`` for an engine that neither sleeps nor is ready; why it cannot be woken.
        """
        ...

    async def reload(self, model: str, revision: str | None = None) -> None:
        """Take other weights of the same shape, once requests in flight have ended; ready with an empty cache then.

        It goes on serving under the same names; ``model_key`` changes with the weights.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` naming what differs in shape; why it cannot be loaded. The weights are
                those from before then.
        """
        ...


@runtime_checkable
class SleepManager(Protocol):
    """What a control plane also is when it passes :class:`SleepControl` on to its engines.

    Each raises ``NOT_FOUND`` for an unknown id, ``UNSUPPORTED`` for an engine that cannot, and what the engine raises.
    """

    async def sleep_engine(self, engine_id: str, level: int = 1, mode: SleepMode = "wait") -> None:
        """Have an engine give memory up."""
        ...

    async def wake_engine(self, engine_id: str) -> None:
        """Have an engine be ready again."""
        ...

    async def reload_engine(self, engine_id: str, model: str, revision: str | None = None) -> None:
        """Have an engine take other weights."""
        ...


@runtime_checkable
class AdapterHost(Protocol):
    """What an engine, or a control plane, also is when LoRA adapters come and go while it runs.

    Asked with ``isinstance``. What is served is in ``info.adapters``.
    """

    async def load_adapter(self, adapter: AdapterSpec) -> None:
        """Serve an adapter under a name of its own; returns once requests may name it.

        Raises:
            SageLLMError: ``UNSUPPORTED`` where adapters are not switched on; ``PERMISSION_DENIED`` for a place that the
                operator does not allow; ``CONFLICT`` for a name in use; what is wrong with the adapter, by name.
        """
        ...

    async def unload_adapter(self, name: str) -> None:
        """Serve it no more. Requests that are using it end as they would; then its memory is given back.

        Raises:
            SageLLMError: ``NOT_FOUND``, listing those there are; ``UNSUPPORTED`` and ``PERMISSION_DENIED`` as above.
        """
        ...


class EngineHandle(Protocol):
    """An engine that a launcher started."""

    @property
    def engine_id(self) -> str:
        """The id it was started under."""
        ...

    @property
    def engine(self) -> Engine:
        """The way to talk to it."""
        ...

    async def stop(self, timeout_s: float | None = None) -> None:
        """Drain for at most ``timeout_s`` (``None``: do not wait), then stop it and release what it held."""
        ...

    async def status(self) -> EngineState:
        """Whether it still runs, as the launcher sees it."""
        ...

    async def logs(self, lines: int = 100) -> Sequence[str]:
        """The last lines it wrote; empty where its output is not kept apart."""
        ...


class Launcher(Protocol):
    """Starts engines somewhere. Made by ``create() -> Launcher``, an entry point of the group ``sagellm.launchers``."""

    async def start(self, spec: EngineSpec, engine_id: str) -> EngineHandle:
        """Start an engine and return once it serves.

        Raises:
            SageLLMError: With the root cause; nothing is left running.
        """
        ...


class RequestEnding(str, Enum):
    """The ways an accepted request may end; each ends in exactly one."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REFUSED = "refused"

    @classmethod
    def of(cls, code: ErrorCode) -> RequestEnding:
        """The ending of a request that was accepted and whose terminal event is an error with ``code``."""
        if code is ErrorCode.CANCELLED:
            return cls.CANCELLED
        if code is ErrorCode.DEADLINE_EXCEEDED:
            return cls.EXPIRED
        return cls.REFUSED if code.http_status < 500 else cls.FAILED


class ModelInfo(Report):
    """A model that can be asked for by name."""

    name: str
    parent: str | None = None
    """The model it adapts, where it is a LoRA adapter."""
    engines: int = Field(ge=0)
    """Engines that serve it."""
    ready: int = Field(ge=0)
    """Those of them that take requests now."""
    mock: bool = False
    features: frozenset[str] = frozenset()
    max_model_len: int | None = None
    created_s: int
    """Unix seconds since when it is known here."""


class EngineRecord(Report):
    """An engine as a control plane keeps it."""

    info: EngineInfo
    stats: EngineStats | None = None
    """As last reported; absent while it never was."""
    launcher: str | None = None
    """What started it; absent for an engine that was attached."""
    url: str | None = None
    in_flight: int = Field(default=0, ge=0)
    """Requests this plane has there."""
    circuit: Literal["closed", "open", "half_open"] | None = None
    """State of the plane's circuit breaker: an engine that fails what it is sent is sent nothing for a while
    (``open``), then one request (``half_open``)."""


class ScalingStatus(Report):
    """A model whose number of engines follows its load."""

    model: str
    ready: int = Field(ge=0)
    starting: int = Field(default=0, ge=0)
    wanted: int = Field(ge=0)
    """By the last decision."""
    min_engines: int = Field(ge=0)
    max_engines: int = Field(ge=1)
    reason: str
    """Why so many, or why an engine that is wanted could not be started."""
    inputs: dict[str, float] = Field(default={})
    """Figures that the last decision was made from, by name; what was not measured is missing."""


class PlaneStatus(Report):
    """A control plane at one moment."""

    ready: bool
    """Whether requests are served: an engine takes them, or a model gets one as soon as it is asked for."""
    reason: str | None = None
    """Why not."""
    engines: tuple[EngineRecord, ...] = ()
    queued: int = Field(default=0, ge=0)
    in_flight: int = Field(default=0, ge=0)
    """Accepted and not ended, queued ones included."""
    accepted: int = Field(default=0, ge=0)
    ended: dict[RequestEnding, int] = Field(default={})
    """Counts by ending; with ``in_flight`` they sum to ``accepted``. Requests refused before they were accepted stand
    apart, in ``refused_early``."""
    refused_early: int = Field(default=0, ge=0)
    troubles: tuple[str, ...] = ()
    """What an operator should see to, though the plane serves: a disk that is full, a file that is damaged."""
    scaling: tuple[ScalingStatus, ...] = ()
    """Empty where no model is scaled."""
    retried: int = Field(default=0, ge=0)
    """Attempts begun on another engine before the first output."""
    resumed: int = Field(default=0, ge=0)
    """Streams gone on with on another engine."""
    hedged: int = Field(default=0, ge=0)
    """Requests given to a second engine because the first was slow to begin."""
    hedges_won: int = Field(default=0, ge=0)
    """Those of them that the second engine answered."""
    circuits_opened: int = Field(default=0, ge=0)


class ControlPlane(Protocol):
    """Many engines behind one door. Made by an entry point of the group ``sagellm.control_planes``."""

    async def start(self) -> None:
        """Begin to serve; returns once background work runs. Does not wait for engines."""
        ...

    async def stop(self, drain_s: float | None = None) -> None:
        """Refuse what is new, let what is in flight end within ``drain_s``, cancel the rest, stop what it launched."""
        ...

    def submit(self, request: Request) -> AsyncGenerator[StreamEvent, None]:
        """Serve a generation request; events as :mod:`sagellm_protocol.events` orders them.

        Everything that goes wrong comes as the terminal event: ``MODEL_NOT_FOUND`` when no engine serves the model,
        ``UNAVAILABLE`` when none of those that do takes requests now. The request's id is a caller's, and stands in
        every event; the plane mints the ids that engines see. Closing the iterator early cancels the request. How it
        ended is counted by the time its terminal event can be read.
        """
        ...

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Serve an embedding request.

        Raises:
            SageLLMError: As the request ended.
        """
        ...

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Serve a scoring request.

        Raises:
            SageLLMError: As the request ended.
        """
        ...

    async def cancel(self, request_id: str) -> bool:
        """End a request as cancelled, queued or running. False when none of that id is in flight."""
        ...

    async def render(self, request: Request) -> RenderedPrompt:
        """The prompt as the model that ``request`` names would read it."""
        ...

    async def models(self) -> Sequence[ModelInfo]:
        """Models that can be asked for."""
        ...

    async def status(self) -> PlaneStatus:
        """The plane and its engines now. Never waits for an engine."""
        ...

    async def start_engine(
        self, spec: EngineSpec, launcher: str = "local", engine_id: str | None = None
    ) -> EngineRecord:
        """Launch an engine and serve through it; returns once it is ready.

        Raises:
            SageLLMError: ``CONFLICT`` for an id in use; the root cause when it does not start.
        """
        ...

    async def attach_engine(self, url: str, engine_id: str | None = None, api_key: str | None = None) -> EngineRecord:
        """Serve through an engine that runs elsewhere.

        Raises:
            SageLLMError: ``UNAVAILABLE`` when nothing that we know answers at ``url``.
        """
        ...

    async def drain_engine(self, engine_id: str) -> None:
        """Send it nothing new; returns once it has nothing in flight."""
        ...

    async def stop_engine(self, engine_id: str, drain_s: float | None = None) -> None:
        """Stop an engine this plane launched, or let go of one it attached.

        Raises:
            SageLLMError: ``NOT_FOUND`` for an unknown id.
        """
        ...
