"""The errors everyone speaks: a closed set of codes, each with one HTTP status, and the exception that carries them.

Knows nothing of any API dialect; a gateway turns these into OpenAI's or Anthropic's shape.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic import Field, ValidationError

from ._wire import Report


class ErrorCode(str, Enum):
    """What went wrong, in one word that programs may branch on."""

    INVALID_REQUEST = "invalid_request"
    """A value is wrong; the message names it and what it may be."""
    UNSUPPORTED = "unsupported"
    """A feature or value that is understood but that this engine, device or build does not offer."""
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    """Prompt plus requested output cannot fit the model's context."""
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    CONFLICT = "conflict"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    RATE_LIMITED = "rate_limited"
    """A caller is over its own limit."""
    QUEUE_FULL = "queue_full"
    """The service is over its capacity; the request was not accepted."""
    CANCELLED = "cancelled"
    """The caller went away or asked to stop."""
    INTERNAL = "internal"
    """Our own fault."""
    NOT_INSTALLED = "not_installed"
    """An optional part is missing; the message says what to install."""
    ENGINE_FAILED = "engine_failed"
    """An engine broke while it worked on this request."""
    UNAVAILABLE = "unavailable"
    """Nothing can serve this now: no engine ready, shutting down, unreachable."""
    DEADLINE_EXCEEDED = "deadline_exceeded"

    @property
    def http_status(self) -> int:
        """The one HTTP status of this code."""
        return _HTTP_STATUS[self]

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed elsewhere or later, unless the error itself says otherwise."""
        return self in _RETRYABLE


_HTTP_STATUS = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.UNSUPPORTED: 400,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 400,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.PERMISSION_DENIED: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.CONFLICT: 409,
    ErrorCode.PAYLOAD_TOO_LARGE: 413,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.QUEUE_FULL: 429,
    ErrorCode.CANCELLED: 499,
    ErrorCode.INTERNAL: 500,
    ErrorCode.NOT_INSTALLED: 501,
    ErrorCode.ENGINE_FAILED: 502,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.DEADLINE_EXCEEDED: 504,
}

_RETRYABLE = frozenset(
    {ErrorCode.RATE_LIMITED, ErrorCode.QUEUE_FULL, ErrorCode.ENGINE_FAILED, ErrorCode.UNAVAILABLE},
)


class ErrorInfo(Report):
    """An error as it crosses a wire."""

    code: ErrorCode
    message: str
    param: str | None = None
    """The request field at fault, dotted (``sampling.top_p``)."""
    retryable: bool
    retry_after_s: float | None = Field(default=None, ge=0)
    """Seconds after which to try again, measured or estimated by whoever refused."""


class SageLLMError(Exception):
    """The exception every part of isagellm raises for what a caller should see.

    Args:
        code: What went wrong.
        message: One or two sentences with the offending values and the fix.
        param: The request field at fault, dotted, when there is one.
        retryable: Overrides the code's own answer.
        retry_after_s: Seconds after which to try again.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        param: str | None = None,
        *,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retryable = code.retryable if retryable is None else retryable
        self.retry_after_s = retry_after_s

    @property
    def http_status(self) -> int:
        """The HTTP status of this error's code."""
        return self.code.http_status

    def info(self) -> ErrorInfo:
        """This error as a wire message."""
        return ErrorInfo(
            code=self.code,
            message=self.message,
            param=self.param,
            retryable=self.retryable,
            retry_after_s=self.retry_after_s,
        )

    @classmethod
    def from_info(cls, info: ErrorInfo) -> SageLLMError:
        """The exception that a wire message stands for."""
        return cls(info.code, info.message, info.param, retryable=info.retryable, retry_after_s=info.retry_after_s)

    @classmethod
    def from_validation(cls, error: ValidationError, prefix: str = "") -> SageLLMError:
        """Turn pydantic's findings into one error that names the first field at fault, and lists the others.

        Args:
            error: What pydantic raised.
            prefix: Dotted path put before each field's own.
        """
        findings = [(_dotted(prefix, finding["loc"]), _explain(finding)) for finding in error.errors(include_url=False)]
        message = "; ".join(f"{where or 'request'}: {what}" for where, what in findings)
        return cls(ErrorCode.INVALID_REQUEST, message, findings[0][0] or None)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own pickling forgets keyword arguments, and errors cross process boundaries.
        return _rebuild, (self.code, self.message, self.param, self.retryable, self.retry_after_s)


def _rebuild(
    code: ErrorCode, message: str, param: str | None, retryable: bool, retry_after_s: float | None
) -> SageLLMError:
    return SageLLMError(code, message, param, retryable=retryable, retry_after_s=retry_after_s)


def _dotted(prefix: str, location: tuple[int | str, ...]) -> str:
    return ".".join([*([prefix] if prefix else []), *(str(part) for part in location)])


def _explain(finding: Any) -> str:
    if finding["type"] == "extra_forbidden":
        return "unknown field"
    if finding["type"] == "missing":
        return "required"
    if finding["type"] == "value_error":
        # Our own words, which name the values already.
        return str(finding["msg"]).removeprefix("Value error, ")
    value = repr(finding["input"])
    return f"{finding['msg']} (got {value if len(value) <= 80 else value[:77] + '...'})"
