"""What an engine answers while it works on a request: one ``start``, any number of ``delta``, one ``end`` or ``error``.

Exactly one terminal event closes a stream, and nothing follows it. Knows nothing of transports or API dialects.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from ._wire import Report
from .blocks import KVTransferTicket
from .errors import ErrorInfo
from .metrics import Metrics, Timestamps

LOGPROB_FLOOR = -9999.0
"""Lowest log-probability that is reported."""


def _floored(logprob: float) -> float:
    return max(logprob, LOGPROB_FLOOR)


class FinishReason(str, Enum):
    """Why a choice ended."""

    STOP = "stop"
    """The model ended it, or a stop string or token was met."""
    LENGTH = "length"
    """``max_tokens`` or the context ended it."""
    TOOL_CALLS = "tool_calls"
    """The model asked for tools to be called."""


class TokenLogprob(Report):
    """A token and its log-probability in the model's own distribution, before penalties, biases and temperature."""

    token_id: int
    token: str
    """The token's text; the replacement character stands for bytes that are not whole."""
    bytes: tuple[int, ...] | None = None
    logprob: Annotated[float, AfterValidator(_floored)]
    """Natural logarithm. Impossible tokens have :data:`LOGPROB_FLOOR`, for JSON has no infinity."""
    rank: int | None = None
    """1 for the likeliest."""


class PositionLogprobs(TokenLogprob):
    """The token that was produced, with the likeliest ones at its position."""

    top: tuple[TokenLogprob, ...] = ()


class ToolCallDelta(Report):
    """A piece of a tool call. The first piece of a call carries ``id`` and ``name``."""

    index: int
    """Which of the choice's calls."""
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    """Next piece of the arguments' JSON text."""


class Usage(Report):
    """Tokens counted."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    """Over all choices, stop tokens included."""
    cached_tokens: int = Field(default=0, ge=0)
    """Prompt tokens found in the prefix cache."""
    reasoning_tokens: int | None = Field(default=None, ge=0)

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class StartEvent(Report):
    """The engine has taken the request in and knows its prompt."""

    type: Literal["start"] = "start"
    request_id: str
    prompt_tokens: int = Field(ge=0)
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    """One for each prompt token, when asked for; ``None`` for the first, which follows nothing."""
    prompt_token_ids: tuple[int, ...] | None = None
    """When asked for."""
    first_token: str | None = None
    """Text of the first prompt token, beside ``prompt_logprobs``."""


class DeltaEvent(Report):
    """More of one choice. Any of the payload fields may be empty."""

    type: Literal["delta"] = "delta"
    request_id: str
    index: int = 0
    """Which choice."""
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    token_ids: tuple[int, ...] = ()
    """Tokens this delta accounts for; text may lag behind them (a character of several tokens, a held stop string).

    Stop and end-of-text tokens are among them. Over a stream they are as many as ``usage.completion_tokens``, unless
    the engine knows no token ids at all (a foreign server).
    """
    logprobs: tuple[PositionLogprobs, ...] | None = None
    """One for each of ``token_ids``, when asked for."""


class ChoiceEnd(Report):
    """How one choice ended."""

    index: int
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    """The stop string or stop token id that was met; absent for the model's own end-of-text."""
    score: float | None = None
    """With beam search: the sequence's log-probability over its length to the power of ``length_penalty``."""


class EndEvent(Report):
    """Closes a request that was completed."""

    type: Literal["end"] = "end"
    request_id: str
    choices: tuple[ChoiceEnd, ...]
    """Every choice, by index."""
    usage: Usage
    metrics: Metrics = Metrics.model_construct()
    timestamps: Timestamps = Timestamps.model_construct()
    kv_transfer: KVTransferTicket | None = None


class ErrorEvent(Report):
    """Closes a request that was not completed."""

    type: Literal["error"] = "error"
    request_id: str
    error: ErrorInfo
    usage: Usage | None = None
    """Tokens counted until then, where known."""


StreamEvent = Annotated[StartEvent | DeltaEvent | EndEvent | ErrorEvent, Field(discriminator="type")]

_EVENT: TypeAdapter[StreamEvent] = TypeAdapter(StreamEvent, config=ConfigDict(defer_build=True))


def parse_event(data: bytes | str) -> StreamEvent:
    """Read one event from its JSON.

    Raises:
        pydantic.ValidationError: ``data`` is no event.
    """
    return _EVENT.validate_json(data)


def is_terminal(event: StreamEvent) -> bool:
    """Whether ``event`` closes its stream."""
    return isinstance(event, (EndEvent, ErrorEvent))
