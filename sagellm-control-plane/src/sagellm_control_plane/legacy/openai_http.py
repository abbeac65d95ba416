"""Servers that speak OpenAI's API over HTTP, asked in the few words that executors need.

Answers are streamed, so that the time to the first token can be measured, and given back whole. Knows nothing of
instances or of retries.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp

from sagellm_protocol import ErrorCode, SageLLMError

CONNECT_S = 5.0
LOOK_S = 5.0
_CODES = {
    400: ErrorCode.INVALID_REQUEST,
    401: ErrorCode.UNAUTHENTICATED,
    403: ErrorCode.PERMISSION_DENIED,
    404: ErrorCode.NOT_FOUND,
    413: ErrorCode.PAYLOAD_TOO_LARGE,
    422: ErrorCode.INVALID_REQUEST,
    429: ErrorCode.RATE_LIMITED,
    503: ErrorCode.UNAVAILABLE,
}


class OpenAIHttp:
    """A client of any number of such servers.

    Args:
        timeout_s: Longest that an answer may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> aiohttp.ClientSession:
        """The session; made when it is first needed."""
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self._session

    async def close(self) -> None:
        """End what is in flight."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def post(self, url: str, body: Mapping[str, Any], api_key: str | None = None) -> dict[str, Any]:
        """The answer to a call that is not streamed.

        Raises:
            SageLLMError: ``UNAVAILABLE`` when nothing answers, ``DEADLINE_EXCEEDED`` when it takes too long, or what
                the server refuses with.
        """
        session = await self.open()
        timeout = aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_S)
        try:
            async with session.post(url, json=dict(body), headers=_headers(api_key), timeout=timeout) as response:
                await _check(response, url)
                answer: Any = await response.json(content_type=None)
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as failure:
            raise self._failure(url, failure) from failure
        if not isinstance(answer, dict):
            raise SageLLMError(ErrorCode.ENGINE_FAILED, f"{url} answered what is no JSON object: {str(answer)[:200]}")
        return answer

    async def stream(
        self, url: str, body: Mapping[str, Any], on_piece: Callable[[], None], api_key: str | None = None
    ) -> dict[str, Any]:
        """A completion, streamed to here and given back whole.

        Args:
            url: Of chat completions or completions.
            body: The call, without ``stream``.
            on_piece: Called whenever a piece of text comes.
            api_key: The server's key.

        Raises:
            SageLLMError: As for :meth:`post`; ``ENGINE_FAILED`` for a stream that breaks off.
        """
        session = await self.open()
        timeout = aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_S)
        call = {**body, "stream": True, "stream_options": {"include_usage": True}}
        whole = _Whole()
        try:
            async with session.post(url, json=call, headers=_headers(api_key), timeout=timeout) as response:
                await _check(response, url)
                async for chunk in _events(response):
                    if "error" in chunk:
                        raise SageLLMError(ErrorCode.ENGINE_FAILED, f"{url} failed: {_message(chunk)}")
                    if whole.add(chunk):
                        on_piece()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as failure:
            raise self._failure(url, failure) from failure
        if not whole.finished:
            raise SageLLMError(ErrorCode.ENGINE_FAILED, f"{url} ended its stream before the answer was complete")
        return whole.answer()

    async def answers(self, base: str, api_key: str | None = None) -> bool:
        """Whether a server is there and well: by ``/health`` if it has that, else by its models."""
        for path in ("/health", "/v1/models"):
            status = await self._status(base + path, api_key)
            if status != 404:
                return status is not None and status < 400
        return False

    async def models(self, base: str, api_key: str | None = None) -> list[str] | None:
        """Names that a server serves; ``None`` if it does not say."""
        session = await self.open()
        timeout = aiohttp.ClientTimeout(total=LOOK_S)
        try:
            async with session.get(f"{base}/v1/models", headers=_headers(api_key), timeout=timeout) as response:
                if response.status != 200:
                    return None
                answer: Any = await response.json(content_type=None)
                return [str(model["id"]) for model in answer["data"]]
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError, KeyError, TypeError):
            return None

    async def _status(self, url: str, api_key: str | None) -> int | None:
        session = await self.open()
        try:
            async with session.get(
                url, headers=_headers(api_key), timeout=aiohttp.ClientTimeout(total=LOOK_S)
            ) as response:
                return response.status
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError):
            return None

    def _failure(self, url: str, failure: Exception) -> SageLLMError:
        if isinstance(failure, asyncio.TimeoutError) and not isinstance(failure, aiohttp.ConnectionTimeoutError):
            return SageLLMError(ErrorCode.DEADLINE_EXCEEDED, f"{url} did not answer within {self._timeout_s:g} s")
        if isinstance(failure, (aiohttp.ClientPayloadError, ValueError)):
            return SageLLMError(ErrorCode.ENGINE_FAILED, f"what {url} answered cannot be read: {failure}")
        return SageLLMError(ErrorCode.UNAVAILABLE, f"nothing can be reached at {url}: {failure}")


class _Whole:
    """A completion as its chunks come."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._texts: dict[int, list[str]] = {}
        self._reasons: dict[int, str] = {}
        self._usage: dict[str, Any] | None = None
        self._chat = True

    @property
    def finished(self) -> bool:
        """Whether every choice has ended."""
        return bool(self._reasons) and self._reasons.keys() >= self._texts.keys()

    def add(self, chunk: dict[str, Any]) -> bool:
        """Take a chunk in; whether it brought text."""
        brought = False
        self._last = {**self._last, **{key: chunk[key] for key in ("id", "created", "model") if key in chunk}}
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices", ()):
            index = int(choice.get("index", 0))
            self._chat = "delta" in choice
            text = (choice["delta"].get("content") if self._chat else choice.get("text")) or ""
            self._texts.setdefault(index, []).append(text)
            brought = brought or bool(text)
            if choice.get("finish_reason"):
                self._reasons[index] = choice["finish_reason"]
        return brought

    def answer(self) -> dict[str, Any]:
        """The completion as if it had not been streamed."""
        choices: list[dict[str, Any]] = []
        for index, parts in sorted(self._texts.items()):
            text = "".join(parts)
            said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
            choices.append({"index": index, **said, "finish_reason": self._reasons[index]})
        kind = "chat.completion" if self._chat else "text_completion"
        return {"object": kind, **self._last, "choices": choices, "usage": self._usage}


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            chunk: Any = json.loads(data)
            if isinstance(chunk, dict):
                yield chunk


async def _check(response: aiohttp.ClientResponse, url: str) -> None:
    if response.status < 400:
        return
    text = await response.text()
    try:
        told = _message(json.loads(text))
    except ValueError:
        told = text[:200]
    code = _CODES.get(response.status, ErrorCode.ENGINE_FAILED if response.status >= 500 else ErrorCode.INVALID_REQUEST)
    raise SageLLMError(code, f"{url} answered {response.status}: {told}")


def _message(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
