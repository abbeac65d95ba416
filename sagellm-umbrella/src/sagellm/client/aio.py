"""The asynchronous client, twin of the synchronous one. Knows nothing of how the server works."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any

import httpx
from typing_extensions import Self

from sagellm_protocol import ErrorCode, SageLLMError

from . import _wire


class AsyncInferenceClient:
    """Chat, completion and embedding against one gateway; answers are the server's JSON.

    Args:
        base_url: Address of the API, ending in ``/v1``.
        default_llm_model: Model of :meth:`chat` and :meth:`generate` where none is named; absent, the first one served.
        default_embedding_model: Likewise for :meth:`embed`.
        timeout: Seconds to wait for the server to say anything.
        session: An ``httpx.AsyncClient`` to use in place of one of its own; it is left open.
        api_key: Key of the server; absent, ``SAGELLM_API_KEY``.
    """

    def __init__(
        self,
        base_url: str,
        default_llm_model: str | None = None,
        default_embedding_model: str | None = None,
        timeout: float = 60,
        session: httpx.AsyncClient | None = None,
        *,
        api_key: str | None = None,
    ) -> None:
        if session is not None and not isinstance(session, httpx.AsyncClient):
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"session is a {type(session).__module__}.{type(session).__qualname__}; give an httpx.AsyncClient",
                "session",
            )
        self.base_url = _wire.base_url(base_url)
        self.default_llm_model = default_llm_model
        self.default_embedding_model = default_embedding_model
        self.timeout = timeout
        self._headers = _wire.headers(api_key)
        self._session = session or httpx.AsyncClient()
        self._owns_session = session is None

    @classmethod
    def create(
        cls,
        control_plane_url: str | None = None,
        default_llm_model: str | None = None,
        default_embedding_model: str | None = None,
        timeout: float = 60,
        session: httpx.AsyncClient | None = None,
        *,
        api_key: str | None = None,
    ) -> Self:
        """A client of a running gateway: at ``control_plane_url``, else ``SAGELLM_BASE_URL``, else local port 8889."""
        url = _wire.base_url(control_plane_url)
        return cls(url, default_llm_model, default_embedding_model, timeout, session, api_key=api_key)

    create_with_control_plane = create

    async def chat(
        self, messages: Iterable[Mapping[str, Any]], model: str | None = None, **options: Any
    ) -> Mapping[str, Any]:
        """Answer a conversation.

        Args:
            messages: Turns, each with ``role`` and ``content``.
            model: Which model.
            options: Any further field of OpenAI's chat completions (``max_tokens``, ``temperature``, …).

        Raises:
            SageLLMError: The server refused or failed, in its own words; or could not be reached.
        """
        _wire.refuse_stream(options, "chat_stream")
        return await self._post("/chat/completions", _wire.chat_payload(messages, await self._llm(model), options))

    async def chat_stream(
        self, messages: Iterable[Mapping[str, Any]], model: str | None = None, **options: Any
    ) -> AsyncGenerator[Mapping[str, Any], None]:
        """Like :meth:`chat`, yielding chunks as they come. Closing the iterator stops the generation."""
        payload = _wire.chat_payload(messages, await self._llm(model), options)
        async with aclosing(self._stream("/chat/completions", payload)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def generate(self, prompt: str, model: str | None = None, **options: Any) -> Mapping[str, Any]:
        """Continue a text; options and errors as for :meth:`chat`."""
        _wire.refuse_stream(options, "generate_stream")
        return await self._post("/completions", _wire.generate_payload(prompt, await self._llm(model), options))

    async def generate_stream(
        self, prompt: str, model: str | None = None, **options: Any
    ) -> AsyncGenerator[Mapping[str, Any], None]:
        """Like :meth:`generate`, yielding chunks as they come."""
        payload = _wire.generate_payload(prompt, await self._llm(model), options)
        async with aclosing(self._stream("/completions", payload)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embed(self, texts: Iterable[str], model: str | None = None, **options: Any) -> Mapping[str, Any]:
        """Vectors of texts, in their order."""
        name = model or self.default_embedding_model or _wire.first_model(await self.models())
        return await self._post("/embeddings", _wire.embed_payload(texts, name, options))

    async def models(self) -> Mapping[str, Any]:
        """Models the server offers."""
        return await self._send("GET", "/models")

    async def close(self) -> None:
        """Close the connection, unless it was passed in."""
        if self._owns_session:
            await self._session.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _llm(self, model: str | None) -> str:
        return model or self.default_llm_model or _wire.first_model(await self.models())

    async def _post(self, path: str, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._send("POST", path, payload)

    async def _send(self, method: str, path: str, payload: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        url = self.base_url + path
        try:
            answer = await self._session.request(
                method, url, json=payload, headers=self._headers, timeout=httpx.Timeout(self.timeout)
            )
        except httpx.HTTPError as error:
            raise _wire.unreachable(url, error) from error
        if answer.is_error:
            raise _wire.error_of(answer.status_code, answer.content, answer.headers.get("retry-after"))
        body: Mapping[str, Any] = answer.json()
        return body

    async def _stream(self, path: str, payload: dict[str, Any]) -> AsyncGenerator[Mapping[str, Any], None]:
        url = self.base_url + path
        reader = _wire.StreamReader()
        request = self._session.stream(
            "POST", url, json={**payload, "stream": True}, headers=self._headers, timeout=httpx.Timeout(self.timeout)
        )
        try:
            async with request as answer:
                if answer.is_error:
                    raise _wire.error_of(answer.status_code, await answer.aread(), answer.headers.get("retry-after"))
                async for line in answer.aiter_lines():
                    chunk = reader.line(line)
                    if chunk is not None:
                        yield chunk
        except httpx.HTTPError as error:
            raise _wire.unreachable(url, error) from error
        reader.close()
