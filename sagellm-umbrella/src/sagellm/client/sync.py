"""The synchronous client. Its names and shapes are those ``sage.llm`` had."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import httpx
from typing_extensions import Self

from . import _wire
from .base import Call, InferenceClient, Json

Result = TypeVar("Result")


class UnifiedInferenceClient(InferenceClient[httpx.Client]):
    """The client for programs that wait; see :class:`~sagellm.client.base.InferenceClient` for what it takes."""

    _session_type = httpx.Client

    def chat(self, messages: Iterable[Json], model: str | None = None, **options: Any) -> Json:
        """Answer a conversation.

        Args:
            messages: Turns, each with ``role`` and ``content``.
            model: Which model.
            options: Any further field of OpenAI's chat completions (``max_tokens``, ``temperature``, …).

        Raises:
            SageLLMError: The server refused or failed, in its own words; or could not be reached.
        """
        return self._perform(self._chat(messages, model, options))

    def chat_stream(self, messages: Iterable[Json], model: str | None = None, **options: Any) -> Iterator[Json]:
        """Like :meth:`chat`, yielding chunks as they come. Closing the iterator stops the generation."""
        yield from self._stream(self._perform(self._chat_call(messages, model, options)))

    def generate(self, prompt: str, model: str | None = None, **options: Any) -> Json:
        """Continue a text; options and errors as for :meth:`chat`."""
        return self._perform(self._generate(prompt, model, options))

    def generate_stream(self, prompt: str, model: str | None = None, **options: Any) -> Iterator[Json]:
        """Like :meth:`generate`, yielding chunks as they come."""
        yield from self._stream(self._perform(self._generate_call(prompt, model, options)))

    def embed(self, texts: Iterable[str], model: str | None = None, **options: Any) -> Json:
        """Vectors of texts, in their order."""
        return self._perform(self._embed(texts, model, options))

    def models(self) -> Json:
        """Models the server offers."""
        return self._perform(self._models())

    def close(self) -> None:
        """Close the connection, unless it was passed in."""
        if self._owns_session:
            self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _perform(self, flow: Generator[Call, Json, Result]) -> Result:
        try:
            call = next(flow)
            while True:
                call = flow.send(self._send(call))
        except StopIteration as done:
            result: Result = done.value
            return result

    def _send(self, call: Call) -> Json:
        url = self.base_url + call.path
        try:
            answer = self._session.request(
                call.method, url, json=call.payload, headers=self._headers, timeout=self.timeout
            )
        except httpx.HTTPError as error:
            raise _wire.unanswered(url, error, self.timeout) from error
        return _wire.body(answer.status_code, answer.content, answer.headers.get("retry-after"))

    def _stream(self, call: Call) -> Iterator[Json]:
        url = self.base_url + call.path
        reader = _wire.StreamReader()
        payload = {**(call.payload or {}), "stream": True}
        try:
            with self._session.stream(
                call.method, url, json=payload, headers=self._headers, timeout=self.timeout
            ) as answer:
                if answer.is_error:
                    raise _wire.error_of(answer.status_code, answer.read(), answer.headers.get("retry-after"))
                for line in answer.iter_lines():
                    chunk = reader.line(line)
                    if chunk is not None:
                        yield chunk
        except httpx.HTTPError as error:
            raise _wire.unanswered(url, error, self.timeout) from error
        reader.close()
