"""Texts embedded by servers that speak OpenAI's API, with retries where another attempt may help."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import aiohttp

from sagellm_control_plane.legacy.errors import BadValue
from sagellm_control_plane.legacy.openai_http import CONNECT_S, OpenAIHttp
from sagellm_control_plane.types import now

_AGAIN = (429, 502, 503, 504)


@dataclass
class EmbeddingResult:
    """Vectors, in the order of the texts."""

    request_id: str
    embeddings: list[list[float]]
    model: str
    usage: dict[str, int]
    latency_ms: float
    created_at: datetime = field(default_factory=now)
    success: bool = True
    error_message: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def embedding_count(self) -> int:
        """How many."""
        return len(self.embeddings)

    @property
    def embedding_dimension(self) -> int | None:
        """Numbers in each; ``None`` without any."""
        return len(self.embeddings[0]) if self.embeddings else None


class EmbeddingExecutorError(Exception):
    """Texts could not be embedded."""


class EmbeddingInstanceUnavailableError(EmbeddingExecutorError):
    """Nothing answers there."""

    def __init__(self, host: str, port: int, message: str | None = None) -> None:
        self.host, self.port = host, port
        super().__init__(f"no embedding server can be reached at {host}:{port}{': ' + message if message else ''}")


class EmbeddingTimeoutError(EmbeddingExecutorError):
    """The answer took too long."""

    def __init__(self, host: str, port: int, timeout_seconds: float) -> None:
        self.host, self.port, self.timeout_seconds = host, port, timeout_seconds
        super().__init__(f"the embedding server at {host}:{port} did not answer within {timeout_seconds:g} s")


class EmbeddingRequestError(EmbeddingExecutorError):
    """The server refused, or answered what cannot be read."""

    def __init__(self, host: str, port: int, status_code: int, error_detail: str) -> None:
        self.host, self.port, self.status_code, self.error_detail = host, port, status_code, error_detail
        super().__init__(f"the embedding server at {host}:{port} answered {status_code}: {error_detail}")


@dataclass
class EmbeddingMetrics:
    """Counts since the last reset."""

    total_requests: int = 0
    successful_requests: int = 0
    failed_requests: int = 0
    total_texts_embedded: int = 0
    total_latency_ms: float = 0.0
    retries_total: int = 0

    @property
    def avg_latency_ms(self) -> float:
        """Of a request that succeeded; 0 without any."""
        return self.total_latency_ms / self.successful_requests if self.successful_requests else 0.0

    @property
    def avg_texts_per_request(self) -> float:
        """Of a request that succeeded; 0 without any."""
        return self.total_texts_embedded / self.successful_requests if self.successful_requests else 0.0

    @property
    def success_rate(self) -> float:
        """Share of requests that succeeded; 0 without any."""
        return self.successful_requests / self.total_requests if self.total_requests else 0.0


class EmbeddingExecutor:
    """Embeds texts over HTTP.

    Args:
        timeout: Longest that one attempt may take, in seconds.
        max_retries: Attempts after the first, where nothing answered, it took too long, or the server was busy.
        retry_delay: Seconds before the first of them; doubles with each.

    Raises:
        ValueError: For a value out of range.
    """

    def __init__(self, timeout: int = 300, max_retries: int = 3, retry_delay: float = 1.0) -> None:
        for name, value, fits in (
            ("timeout", timeout, timeout > 0),
            ("max_retries", max_retries, max_retries >= 0),
            ("retry_delay", retry_delay, retry_delay >= 0),
        ):
            if not fits:
                raise BadValue(f"{name} must not be {value!r}", name)
        self.timeout, self.max_retries, self.retry_delay = timeout, max_retries, retry_delay
        self._http = OpenAIHttp(timeout)
        self._metrics = EmbeddingMetrics()

    async def initialize(self) -> None:
        """Be ready to connect; embedding does it too."""
        await self._http.open()

    async def cleanup(self) -> None:
        """Close connections; what is in flight fails."""
        await self._http.close()

    async def execute_embedding(
        self,
        texts: list[str],
        model: str,
        host: str,
        port: int,
        request_id: str | None = None,
        encoding_format: str = "float",
    ) -> EmbeddingResult:
        """Embed texts in one request.

        Args:
            texts: One or more.
            model: Of the server.
            host: Its host.
            port: Its port.
            request_id: Given back with the answer; made up if left out.
            encoding_format: ``float``, which is how vectors are given back.

        Raises:
            EmbeddingExecutorError: As the last attempt failed.
            ValueError: No texts, or another encoding.
        """
        if not texts or any(not isinstance(text, str) for text in texts):
            raise BadValue("texts must be a list of one or more texts", "texts")
        if encoding_format != "float":
            raise BadValue(f"encoding_format must be 'float' (got {encoding_format!r})", "encoding_format")
        self._metrics.total_requests += 1
        began = time.monotonic()
        try:
            answer = await self._patiently(host, port, {"model": model, "input": texts, "encoding_format": "float"})
            vectors = _vectors(answer, len(texts), host, port)
        except BaseException:
            self._metrics.failed_requests += 1
            raise
        latency_ms = (time.monotonic() - began) * 1000
        self._metrics.successful_requests += 1
        self._metrics.total_texts_embedded += len(texts)
        self._metrics.total_latency_ms += latency_ms
        return EmbeddingResult(
            request_id=request_id or f"embed-{uuid.uuid4().hex[:12]}",
            embeddings=vectors,
            model=str(answer.get("model") or model),
            usage={key: value for key, value in (answer.get("usage") or {}).items() if isinstance(value, int)},
            latency_ms=latency_ms,
            metadata={"host": host, "port": port},
        )

    async def execute_embedding_batch(
        self,
        texts: list[str],
        model: str,
        host: str,
        port: int,
        batch_size: int = 32,
        request_id_prefix: str | None = None,
    ) -> EmbeddingResult:
        """Embed texts in requests of ``batch_size`` at most, one after the other; the answer is one.

        Raises:
            EmbeddingExecutorError: One of them failed; what was embedded before is dropped.
            ValueError: As for :meth:`execute_embedding`, or for a size under 1.
        """
        if batch_size < 1:
            raise BadValue(f"batch_size must be 1 or more (got {batch_size!r})", "batch_size")
        prefix = request_id_prefix or f"embed-{uuid.uuid4().hex[:12]}"
        whole = EmbeddingResult(prefix, [], model, {}, 0.0, metadata={"host": host, "port": port})
        for index, start in enumerate(range(0, max(1, len(texts)), batch_size)):
            part = await self.execute_embedding(
                texts[start : start + batch_size], model, host, port, f"{prefix}-{index}"
            )
            whole.embeddings.extend(part.embeddings)
            whole.latency_ms += part.latency_ms
            whole.model = part.model
            for key, value in part.usage.items():
                whole.usage[key] = whole.usage.get(key, 0) + value
            whole.metadata["batches"] = index + 1
        return whole

    async def health_check(self, host: str, port: int) -> bool:
        """Whether a server is there and well."""
        return await self._http.answers(f"http://{host}:{port}")

    def get_metrics(self) -> EmbeddingMetrics:
        """Counts since the last reset."""
        return replace(self._metrics)

    def reset_metrics(self) -> None:
        """Count from zero."""
        self._metrics = EmbeddingMetrics()

    async def _patiently(self, host: str, port: int, body: dict[str, Any]) -> dict[str, Any]:
        for attempt in range(self.max_retries + 1):
            try:
                return await self._once(host, port, body)
            except EmbeddingRequestError as error:
                if error.status_code not in _AGAIN or attempt == self.max_retries:
                    raise
            except EmbeddingExecutorError:
                if attempt == self.max_retries:
                    raise
            self._metrics.retries_total += 1
            await asyncio.sleep(self.retry_delay * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, host: str, port: int, body: dict[str, Any]) -> dict[str, Any]:
        session = await self._http.open()
        timeout = aiohttp.ClientTimeout(total=self.timeout, sock_connect=CONNECT_S)
        try:
            async with session.post(f"http://{host}:{port}/v1/embeddings", json=body, timeout=timeout) as response:
                if response.status >= 400:
                    raise EmbeddingRequestError(host, port, response.status, (await response.text())[:500])
                answer: Any = await response.json(content_type=None)
        except aiohttp.ConnectionTimeoutError as failure:
            raise EmbeddingInstanceUnavailableError(host, port, str(failure)) from failure
        except asyncio.TimeoutError as failure:
            raise EmbeddingTimeoutError(host, port, self.timeout) from failure
        except (aiohttp.ClientError, OSError) as failure:
            raise EmbeddingInstanceUnavailableError(host, port, str(failure)) from failure
        except ValueError as failure:
            raise EmbeddingRequestError(host, port, 200, f"no JSON: {failure}") from failure
        if not isinstance(answer, dict):
            raise EmbeddingRequestError(host, port, 200, "no JSON object")
        return answer


def _vectors(answer: dict[str, Any], count: int, host: str, port: int) -> list[list[float]]:
    try:
        data = sorted(answer["data"], key=lambda one: int(one["index"]))
        vectors = [[float(value) for value in one["embedding"]] for one in data]
    except (KeyError, TypeError, ValueError) as failure:
        raise EmbeddingRequestError(host, port, 200, f"no embeddings in the answer: {failure!r}") from failure
    if len(vectors) != count:
        raise EmbeddingRequestError(host, port, 200, f"{len(vectors)} vectors for {count} texts")
    return vectors
