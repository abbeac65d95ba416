"""Whole answers, and how a stream of events becomes one.

Knows nothing of API dialects or transports.
"""

from __future__ import annotations

from collections.abc import AsyncIterable

from pydantic import Field

from ._wire import Report
from .errors import ErrorCode, SageLLMError
from .events import (
    DeltaEvent,
    EndEvent,
    ErrorEvent,
    FinishReason,
    PositionLogprobs,
    StartEvent,
    StreamEvent,
    Usage,
)
from .metrics import Metrics, Timestamps
from .requests import ToolCall


class Output(Report):
    """One choice of a response."""

    index: int = 0
    text: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    score: float | None = None
    """Beam search's, as in ``ChoiceEnd``."""


class Response(Report):
    """A completed request."""

    request_id: str
    trace_id: str | None = None
    model: str
    outputs: tuple[Output, ...] = Field(min_length=1)
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    first_token: str | None = None
    """Text of the first prompt token, beside ``prompt_logprobs``."""
    usage: Usage
    metrics: Metrics = Metrics.model_construct()
    timestamps: Timestamps = Timestamps.model_construct()

    @property
    def output_text(self) -> str:
        """The first choice's text."""
        return self.outputs[0].text

    @property
    def output_tokens(self) -> tuple[int, ...]:
        """The first choice's tokens."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first choice ended."""
        return self.outputs[0].finish_reason


class Vector(Report):
    """One input's embedding."""

    index: int
    values: tuple[float, ...]


class EmbedResponse(Report):
    """Embeddings, in the order of the inputs."""

    request_id: str
    trace_id: str | None = None
    model: str
    vectors: tuple[Vector, ...]
    usage: Usage


class ScoreResponse(Report):
    """Relevance of each document to the query, in the order of the documents."""

    request_id: str
    trace_id: str | None = None
    model: str
    scores: tuple[float, ...]
    usage: Usage


class _Choice:
    """What has been gathered of one choice."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[PositionLogprobs] | None = None
        self.calls: dict[int, tuple[str, str, list[str]]] = {}

    def add(self, delta: DeltaEvent) -> None:
        self.text.append(delta.text)
        self.reasoning.append(delta.reasoning)
        self.token_ids.extend(delta.token_ids)
        if delta.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs.extend(delta.logprobs)
        for piece in delta.tool_calls:
            known = self.calls.setdefault(piece.index, (piece.id or "", piece.name or "", []))
            known[2].append(piece.arguments)


class ResponseBuilder:
    """Gathers a stream's events into a :class:`Response`.

    Args:
        model: Name to answer under.
        trace_id: The request's trace.
    """

    def __init__(self, model: str, trace_id: str | None = None) -> None:
        self._model = model
        self._trace_id = trace_id
        self._start: StartEvent | None = None
        self._choices: dict[int, _Choice] = {}
        self._end: EndEvent | None = None

    def add(self, event: StreamEvent) -> None:
        """Take in the next event.

        Raises:
            SageLLMError: The event is an error.
        """
        if isinstance(event, StartEvent):
            self._start = event
        elif isinstance(event, DeltaEvent):
            self._choices.setdefault(event.index, _Choice()).add(event)
        elif isinstance(event, EndEvent):
            self._end = event
        elif isinstance(event, ErrorEvent):
            raise SageLLMError.from_info(event.error)

    def response(self) -> Response:
        """The whole answer.

        Raises:
            SageLLMError: ``ENGINE_FAILED`` when the stream stopped before it was closed.
        """
        if self._end is None:
            raise SageLLMError(ErrorCode.ENGINE_FAILED, "the engine's stream stopped before the answer was complete")
        outputs = []
        for end in self._end.choices:
            choice = self._choices.get(end.index) or _Choice()
            outputs.append(
                Output(
                    index=end.index,
                    text="".join(choice.text),
                    reasoning="".join(choice.reasoning) or None,
                    tool_calls=tuple(
                        ToolCall(id=call_id, name=name, arguments="".join(arguments))
                        for _, (call_id, name, arguments) in sorted(choice.calls.items())
                    ),
                    token_ids=tuple(choice.token_ids),
                    logprobs=None if choice.logprobs is None else tuple(choice.logprobs),
                    finish_reason=end.finish_reason,
                    stop_reason=end.stop_reason,
                    score=end.score,
                )
            )
        return Response(
            request_id=self._end.request_id,
            trace_id=self._trace_id,
            model=self._model,
            outputs=tuple(outputs),
            prompt_logprobs=self._start.prompt_logprobs if self._start else None,
            prompt_token_ids=self._start.prompt_token_ids if self._start else None,
            first_token=self._start.first_token if self._start else None,
            usage=self._end.usage,
            metrics=self._end.metrics,
            timestamps=self._end.timestamps,
        )


async def collect(events: AsyncIterable[StreamEvent], model: str, trace_id: str | None = None) -> Response:
    """Wait for a stream's end and return the whole answer.

    Raises:
        SageLLMError: The stream ended in an error, or without a terminal event.
    """
    builder = ResponseBuilder(model, trace_id)
    async for event in events:
        builder.add(event)
    return builder.response()
