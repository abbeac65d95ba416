"""The asynchronous client: :class:`~sagellm.client.sync.UnifiedInferenceClient` with ``await``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any, TypeVar

import httpx
from typing_extensions import Self

from . import _wire
from .base import Call, InferenceClient, Json

Result = TypeVar("Result")


class AsyncInferenceClient(InferenceClient[httpx.AsyncClient]):
    """The client for programs that await; see :class:`~sagellm.client.base.InferenceClient` for what it takes."""

    _session_type = httpx.AsyncClient

    async def chat(self, messages: Iterable[Json], model: str | None = None, **options: Any) -> Json:
        """Answer a conversation; see :meth:`sagellm.UnifiedInferenceClient.chat`."""
        return await self._perform(self._chat(messages, model, options))

    async def chat_stream(
        self, messages: Iterable[Json], model: str | None = None, **options: Any
    ) -> AsyncGenerator[Json, None]:
        """Like :meth:`chat`, yielding chunks as they come. Closing the iterator stops the generation."""
        async with aclosing(self._stream(self._chat_call(messages, model, options))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def generate(self, prompt: str, model: str | None = None, **options: Any) -> Json:
        """Continue a text; options and errors as for :meth:`chat`."""
        return await self._perform(self._generate(prompt, model, options))

    async def generate_stream(
        self, prompt: str, model: str | None = None, **options: Any
    ) -> AsyncGenerator[Json, None]:
        """Like :meth:`generate`, yielding chunks as they come."""
        async with aclosing(self._stream(self._generate_call(prompt, model, options))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embed(self, texts: Iterable[str], model: str | None = None, **options: Any) -> Json:
        """Vectors of texts, in their order."""
        return await self._perform(self._embed(texts, model, options))

    async def models(self) -> Json:
        """Models the server offers."""
        return await self._perform(self._models())

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

    async def _perform(self, flow: Generator[Call, Json, Result]) -> Result:
        try:
            call = next(flow)
            while True:
                call = flow.send(await self._send(call))
        except StopIteration as done:
            result: Result = done.value
            return result

    async def _send(self, call: Call) -> Json:
        url = self.base_url + call.path
        try:
            answer = await self._session.request(
                call.method, url, json=call.payload, headers=self._headers, timeout=self.timeout
            )
        except httpx.HTTPError as error:
            raise _wire.unanswered(url, error, self.timeout) from error
        return _wire.body(answer.status_code, answer.content, answer.headers.get("retry-after"))

    async def _stream(self, flow: Generator[Call, Json, Call]) -> AsyncGenerator[Json, None]:
        call = await self._perform(flow)
        url = self.base_url + call.path
        reader = _wire.StreamReader()
        payload = {**(call.payload or {}), "stream": True}
        try:
            async with self._session.stream(
                call.method, url, json=payload, headers=self._headers, timeout=self.timeout
            ) as answer:
                if answer.is_error:
                    raise _wire.error_of(answer.status_code, await answer.aread(), answer.headers.get("retry-after"))
                async for line in answer.aiter_lines():
                    chunk = reader.line(line)
                    if chunk is not None:
                        yield chunk
        except httpx.HTTPError as error:
            raise _wire.unanswered(url, error, self.timeout) from error
        reader.close()
