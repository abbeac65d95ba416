"""One way to get streamed text for a conversation, whether the model runs here or behind a gateway.

The event loop lives in a thread of its own, so that the terminal may block on a line of input while the engine's
connection is served. Knows nothing of how text is shown.
"""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from anyio.from_thread import BlockingPortal, start_blocking_portal

from sagellm_protocol import (
    DeltaEvent,
    EndEvent,
    Engine,
    EngineSpec,
    ErrorEvent,
    Message,
    Metrics,
    Request,
    SageLLMError,
    SamplingParams,
    Usage,
    plugins,
)

from .fetch import Report, fetch

if TYPE_CHECKING:
    from sagellm.client import AsyncInferenceClient


@dataclass
class Ending:
    """How an answer ended."""

    finish_reason: str | None = None
    usage: Usage | None = None
    metrics: Metrics = field(default_factory=Metrics)


Piece = str | Ending


class Source(Protocol):
    """Where answers come from."""

    @property
    def model(self) -> str:
        """The model that answers."""
        ...

    def answer(
        self, prompt: str | Sequence[Mapping[str, str]], sampling: SamplingParams
    ) -> AsyncGenerator[Piece, None]:
        """Yield the answer's text piece by piece, then how it ended; ``prompt`` is a text or a conversation."""
        ...


class LocalSource:
    """An engine of this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def model(self) -> str:
        """The model that answers."""
        return self._engine.info.served_names[0]

    async def answer(
        self, prompt: str | Sequence[Mapping[str, str]], sampling: SamplingParams
    ) -> AsyncGenerator[Piece, None]:
        """See :class:`Source`."""
        asked: dict[str, Any] = (
            {"prompt": prompt}
            if isinstance(prompt, str)
            else {"messages": tuple(Message.model_validate(turn) for turn in prompt)}
        )
        request = Request(request_id=uuid.uuid4().hex, model=self.model, sampling=sampling, stream=True, **asked)
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, ErrorEvent):
                    raise SageLLMError.from_info(event.error)
                if isinstance(event, DeltaEvent) and event.text:
                    yield event.text
                elif isinstance(event, EndEvent):
                    yield Ending(event.choices[0].finish_reason.value, event.usage, event.metrics)


class RemoteSource:
    """A gateway."""

    def __init__(self, client: AsyncInferenceClient, model: str) -> None:
        self._client = client
        self._model = model

    @property
    def model(self) -> str:
        """The model that answers."""
        return self._model

    async def answer(
        self, prompt: str | Sequence[Mapping[str, str]], sampling: SamplingParams
    ) -> AsyncGenerator[Piece, None]:
        """See :class:`Source`."""
        options = sampling.model_dump(exclude_defaults=True, mode="json")
        options["stream_options"] = {"include_usage": True}
        chunks = (
            self._client.generate_stream(prompt, self._model, **options)
            if isinstance(prompt, str)
            else self._client.chat_stream(prompt, self._model, **options)
        )
        ending = Ending()
        async with aclosing(chunks):
            async for chunk in chunks:
                for choice in chunk["choices"]:
                    text = choice.get("text") or (choice.get("delta") or {}).get("content")
                    if text:
                        yield text
                    ending.finish_reason = choice.get("finish_reason") or ending.finish_reason
                if chunk.get("usage"):
                    ending.usage = Usage.model_validate(chunk["usage"])
        yield ending


@contextmanager
def local_source(spec: EngineSpec, report: Report) -> Iterator[tuple[BlockingPortal, Source]]:
    """Start an engine, and stop it afterwards; ``report`` is told how far a fetch of its model is."""
    with start_blocking_portal() as portal:
        engine: Engine = plugins.make(plugins.ENGINES, spec.engine, Engine, spec)
        try:
            fetch(spec, report)
            _interruptible(portal, engine.start)
            yield portal, LocalSource(engine)
        finally:
            portal.call(engine.stop)


@contextmanager
def remote_source(url: str, model: str | None, api_key: str | None) -> Iterator[tuple[BlockingPortal, Source]]:
    """Talk to a running gateway."""
    # Not above: httpx takes as long to import as all else that a command does.
    from sagellm.client import AsyncInferenceClient
    from sagellm.client._wire import first_model

    with start_blocking_portal() as portal:
        client = AsyncInferenceClient.create(url, api_key=api_key)
        try:
            name = model or first_model(portal.call(client.models))
            yield portal, RemoteSource(client, name)
        finally:
            portal.call(client.close)


def stream(
    portal: BlockingPortal, source: Source, prompt: str | Sequence[Mapping[str, str]], sampling: SamplingParams
) -> Iterator[Piece]:
    """Yield an answer's pieces to this thread. Leaving early (Ctrl-C) stops the generation before it returns."""
    pieces: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()
    closed = threading.Event()

    async def pump() -> None:
        try:
            async with aclosing(source.answer(prompt, sampling)) as answer:
                async for piece in answer:
                    pieces.put(piece)
            pieces.put(None)
        except Exception as error:  # noqa: BLE001  raised again in the thread that waits for it
            pieces.put(error)
        finally:
            closed.set()

    task = portal.start_task_soon(pump)
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        task.cancel()
        closed.wait(timeout=10)


def _interruptible(portal: BlockingPortal, work: Any) -> None:
    """Wait for ``work`` in the portal; Ctrl-C cancels it."""
    task = portal.start_task_soon(work)
    try:
        task.result()
    except BaseException:
        task.cancel()
        raise
