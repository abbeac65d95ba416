"""OpenAI's answers as events and errors. Knows nothing of connections."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sagellm_protocol import (
    ChoiceEnd,
    DeltaEvent,
    EndEvent,
    ErrorCode,
    FinishReason,
    SageLLMError,
    ToolCallDelta,
    Usage,
)

_REASONS = {
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}
_CODES = {
    401: ErrorCode.UNAUTHENTICATED,
    403: ErrorCode.PERMISSION_DENIED,
    404: ErrorCode.MODEL_NOT_FOUND,
    413: ErrorCode.PAYLOAD_TOO_LARGE,
    429: ErrorCode.RATE_LIMITED,
    501: ErrorCode.UNSUPPORTED,
    503: ErrorCode.UNAVAILABLE,
}


class Answer:
    """One answer, as it comes in pieces of server-sent events.

    Args:
        request_id: Whose it is.
        choices: How many there are to be.
        prompt_tokens: The estimate, for servers that report no usage.
    """

    def __init__(self, request_id: str, choices: int, prompt_tokens: int) -> None:
        self._id = request_id
        self._choices = choices
        self._usage: Usage | None = None
        self._prompt_tokens = prompt_tokens
        self._pieces = 0
        self._ends: dict[int, ChoiceEnd] = {}

    def take(self, data: bytes) -> Iterator[DeltaEvent]:
        """Read one event's data.

        Raises:
            SageLLMError: It is an error, or makes no sense.
        """
        try:
            piece = json.loads(data)
            if "error" in piece:
                raise error_of(int(piece["error"].get("code") or 500), data)
            if piece.get("usage"):
                self._usage = _usage(piece["usage"])
            for choice in piece.get("choices") or ():
                yield from self._choice(choice)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SageLLMError(
                ErrorCode.ENGINE_FAILED, f"the server sent what is no piece of an answer: {data[:200]!r}"
            ) from error

    def end(self) -> EndEvent:
        """The end, once the server has said that it is.

        Raises:
            SageLLMError: ``ENGINE_FAILED`` while a choice has not ended.
        """
        if len(self._ends) < self._choices:
            raise SageLLMError(ErrorCode.ENGINE_FAILED, "the server closed the stream before the answer was complete")
        usage = self._usage or Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._pieces)
        return EndEvent(request_id=self._id, choices=tuple(self._ends[one] for one in sorted(self._ends)), usage=usage)

    def _choice(self, choice: dict[str, Any]) -> Iterator[DeltaEvent]:
        index, delta = choice.get("index", 0), choice.get("delta") or {}
        text = delta.get("content") or choice.get("text") or ""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        calls = tuple(
            ToolCallDelta(
                index=call.get("index", number),
                id=call.get("id") or None,
                name=(call.get("function") or {}).get("name") or None,
                arguments=(call.get("function") or {}).get("arguments") or "",
            )
            for number, call in enumerate(delta.get("tool_calls") or ())
        )
        if text or reasoning or calls:
            self._pieces += 1
            yield DeltaEvent(request_id=self._id, index=index, text=text, reasoning=reasoning, tool_calls=calls)
        reason = choice.get("finish_reason")
        if reason is not None:
            stop = choice.get("stop_reason")
            self._ends[index] = ChoiceEnd(
                index=index,
                finish_reason=_REASONS.get(reason, FinishReason.STOP),
                stop_reason=stop if isinstance(stop, (str, int)) else None,
            )


def _usage(told: dict[str, Any]) -> Usage:
    prompt, completion = told.get("prompt_tokens_details") or {}, told.get("completion_tokens_details") or {}
    return Usage(
        prompt_tokens=told["prompt_tokens"],
        completion_tokens=told.get("completion_tokens") or 0,
        cached_tokens=prompt.get("cached_tokens") or 0,
        reasoning_tokens=completion.get("reasoning_tokens"),
    )


def error_of(status: int, body: bytes, retry_after: str | None = None) -> SageLLMError:
    """What a server's refusal means, in its own words."""
    said = body.decode(errors="replace")[:500]
    try:
        told = json.loads(body)
        inner = told.get("error", told) if isinstance(told, dict) else told
        said = str(inner.get("message", said) if isinstance(inner, dict) else inner)
    except ValueError:
        pass  # some refuse in plain text, which is taken as it is
    code = _CODES.get(status, ErrorCode.ENGINE_FAILED if status >= 500 else ErrorCode.INVALID_REQUEST)
    if status == 400 and any(word in said for word in ("context length", "context size", "maximum context")):
        code = ErrorCode.CONTEXT_LENGTH_EXCEEDED
    seconds = float(retry_after) if retry_after and retry_after.isdecimal() else None
    return SageLLMError(code, f"the server refused: {said}", retry_after_s=seconds)
