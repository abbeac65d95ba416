"""What both clients say and hear: payloads, answers, errors and event streams. Does no I/O."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from sagellm_protocol import ErrorCode, SageLLMError

DEFAULT_URL = "http://127.0.0.1:8889/v1"
URL_VARIABLE = "SAGELLM_BASE_URL"
KEY_VARIABLE = "SAGELLM_API_KEY"

_CODE_OF_STATUS = {
    400: ErrorCode.INVALID_REQUEST,
    401: ErrorCode.UNAUTHENTICATED,
    403: ErrorCode.PERMISSION_DENIED,
    404: ErrorCode.NOT_FOUND,
    409: ErrorCode.CONFLICT,
    413: ErrorCode.PAYLOAD_TOO_LARGE,
    429: ErrorCode.RATE_LIMITED,
    501: ErrorCode.NOT_INSTALLED,
    502: ErrorCode.ENGINE_FAILED,
    503: ErrorCode.UNAVAILABLE,
    504: ErrorCode.DEADLINE_EXCEEDED,
}


def base_url(url: str | None) -> str:
    """The address to use for ``url``, without a trailing slash.

    ``localhost`` becomes 127.0.0.1: where it resolves to ::1 first, a server bound to IPv4 loopback is not found. An
    address without a path means the API there, under ``/v1``.
    """
    parts = urlsplit((url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/"))
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"{url!r} is no address of a gateway; give one like {DEFAULT_URL}", "base_url"
        )
    if parts.hostname == "localhost":
        parts = parts._replace(netloc=parts.netloc.replace("localhost", "127.0.0.1", 1))
    if not parts.path:
        parts = parts._replace(path="/v1")
    return urlunsplit(parts)


def headers(api_key: str | None) -> dict[str, str]:
    """Headers of every request."""
    key = api_key or os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def texts(given: Iterable[str]) -> list[str]:
    """The texts to embed, as a list."""
    if isinstance(given, str):
        raise SageLLMError(ErrorCode.INVALID_REQUEST, "embed takes a list of texts; got one string", "texts")
    return list(given)


def refuse_stream(options: Mapping[str, Any], instead: str) -> None:
    """Refuse ``stream=True`` where a whole answer is returned."""
    if options.get("stream"):
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"for an answer piece by piece call {instead}", "stream")


def first_model(listing: Mapping[str, Any]) -> str:
    """The model to use when the caller named none: the first one the server lists."""
    models = listing.get("data") or []
    if not models:
        raise SageLLMError(
            ErrorCode.MODEL_NOT_FOUND, "the server lists no model yet; name one, or wait until one is loaded", "model"
        )
    return str(models[0]["id"])


def body(status: int, content: bytes, retry_after: str | None) -> Mapping[str, Any]:
    """The JSON of an answer.

    Raises:
        SageLLMError: The server refused or failed.
    """
    if status >= 400:
        raise error_of(status, content, retry_after)
    try:
        answer: Mapping[str, Any] = json.loads(content)
    except ValueError as error:
        raise SageLLMError(
            ErrorCode.INTERNAL, f"the server answered {status} with what is no JSON: {content[:200]!r}"
        ) from error
    return answer


def error_of(status: int, body: bytes, retry_after: str | None = None) -> SageLLMError:
    """The exception for an answer of HTTP ``status``, with the server's own words where it gave any."""
    code = _CODE_OF_STATUS.get(status, ErrorCode.INTERNAL if status >= 500 else ErrorCode.INVALID_REQUEST)
    message, param = f"the server answered {status}: {body[:500].decode(errors='replace')}", None
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        error = None
    if isinstance(error, Mapping):
        message, param = str(error.get("message", message)), error.get("param")
        named = error.get("code")
        if named in {known.value for known in ErrorCode}:
            code = ErrorCode(named)
    seconds = float(retry_after) if retry_after and retry_after.replace(".", "", 1).isdigit() else None
    return SageLLMError(code, message, param, retry_after_s=seconds)


def unanswered(url: str, reason: httpx.HTTPError, timeout: float) -> SageLLMError:
    """The exception for a server that could not be reached, or that said nothing for ``timeout`` seconds."""
    if isinstance(reason, httpx.ReadTimeout):
        return SageLLMError(
            ErrorCode.DEADLINE_EXCEEDED,
            f"{url} said nothing for {timeout:g} s; give the client a longer timeout, ask for fewer max_tokens, or have"
            " the answer streamed",
            "timeout",
        )
    return SageLLMError(
        ErrorCode.UNAVAILABLE,
        f"no answer from {url} ({str(reason) or type(reason).__name__}); is it running? Start one with: sagellm serve",
    )


class StreamReader:
    """Reads server-sent events of OpenAI's API, line by line."""

    def __init__(self) -> None:
        self.done = False

    def line(self, line: str) -> dict[str, Any] | None:
        """The chunk that ``line`` carries, if any.

        Raises:
            SageLLMError: The server reported an error in mid-stream.
        """
        if not line.startswith("data:"):
            return None
        data = line[5:].strip()
        if data == "[DONE]":
            self.done = True
            return None
        chunk: dict[str, Any] = json.loads(data)
        if "error" in chunk:
            raise error_of(500, data.encode())
        return chunk

    def close(self) -> None:
        """Refuse a stream that stopped before its end.

        Raises:
            SageLLMError: ``ENGINE_FAILED`` when no end was read.
        """
        if not self.done:
            raise SageLLMError(ErrorCode.ENGINE_FAILED, "the answer's stream stopped before it was complete")
