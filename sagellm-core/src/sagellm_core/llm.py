"""``LLM``: a model in this process, asked synchronously. For scripts, notebooks and batch work.

A thin coat over the same engine that serves: same scheduling, same answers. Knows nothing of other engines.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from numbers import Integral
from types import TracebackType
from typing import Any, TypeVar

from pydantic import ValidationError
from tqdm import tqdm
from typing_extensions import Self

from sagellm_protocol.engine import AdapterSpec, EngineInfo, EngineSpec, EngineStats
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.interfaces import Engine
from sagellm_protocol.requests import EmbedRequest, Message, Request, ScoreRequest
from sagellm_protocol.responses import EmbedResponse, Response, ScoreResponse, collect
from sagellm_protocol.sampling import SamplingParams

from .engine import create

T = TypeVar("T")
Asked = TypeVar("Asked", Request, EmbedRequest, ScoreRequest)

Prompt = str | Sequence[int]
"""Text, or token ids."""
Turn = Message | Mapping[str, Any]
"""One turn of a conversation, as a message or as the dictionary it is made of."""
Sampling = SamplingParams | Sequence[SamplingParams] | None
"""One for all, or one for each."""

PROGRESS_AFTER_S = 1.0
"""Work that is done sooner shows no bar."""


@dataclass(frozen=True)
class Ranked:
    """A document among others.

    Attributes:
        index: Its place in what was given.
        score: How well it answers the query.
        document: Itself.
    """

    index: int
    score: float
    document: str


class LLM:
    """A model, loaded and ready.

    Args:
        model: Local path, catalogue name or hub name.
        core: ``inline`` runs the model in a thread of this process, ``process`` in one of its own.
        options: Any other field of :class:`~sagellm_protocol.engine.EngineSpec`.

    Raises:
        SageLLMError: It cannot be loaded; the root cause and its fix.

    Use it as a context manager, or call :meth:`close`, to give the memory back.
    """

    def __init__(self, model: str, *, core: str = "inline", **options: Any) -> None:
        try:
            spec = EngineSpec.model_validate({"model": model, "core": core, **options})
        except ValidationError as error:
            raise SageLLMError.from_validation(error) from error
        self._model = spec.names[0]
        self._engine = create(spec)
        self._numbers = count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sagellm-llm", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, _close, self._engine, self._loop, self._thread)
        try:
            self._run(self._engine.start())
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> EngineInfo:
        """What the engine says of itself."""
        return self._engine.info

    def stats(self) -> EngineStats:
        """The engine's load and counters."""
        return self._run(self._engine.stats())

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Sampling = None,
        *,
        progress: bool = True,
        **fields: Any,
    ) -> list[Response]:
        """Continue prompts; all of them at once, as far as the engine has room.

        Args:
            prompts: One, or several. A prompt is text, or token ids.
            sampling_params: One for all, or one for each; the protocol's defaults when absent.
            progress: Show a bar on standard error when it takes longer than a second.
            fields: Further fields of every :class:`~sagellm_protocol.requests.Request` (``structured``, …).

        Returns:
            An answer a prompt, in their order.

        Raises:
            SageLLMError: The first that went wrong; nothing of the others goes on.
        """
        listed = _prompts(prompts)
        asked = [{"prompt": one} if isinstance(one, str) else {"prompt_token_ids": tuple(one)} for one in listed]
        return self._answer([{**one, **fields} for one in asked], sampling_params, progress)

    def chat(
        self,
        messages: Sequence[Turn] | Sequence[Sequence[Turn]],
        sampling_params: Sampling = None,
        *,
        progress: bool = True,
        **fields: Any,
    ) -> list[Response]:
        """Answer conversations, through the model's chat template.

        Args:
            messages: One conversation, or several; each a sequence of turns.
            sampling_params: As for :meth:`generate`.
            progress: As for :meth:`generate`.
            fields: Further fields of every :class:`~sagellm_protocol.requests.Request` (``chat_template_kwargs``, …).

        Returns:
            An answer a conversation, in their order.

        Raises:
            SageLLMError: As for :meth:`generate`.
        """
        conversations: list[Any] = [messages] if messages and _is_turn(messages[0]) else list(messages)
        return self._answer(
            [{"messages": tuple(conversation), **fields} for conversation in conversations], sampling_params, progress
        )

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        beam_width: int,
        n: int | None = None,
        progress: bool = True,
        **params: Any,
    ) -> list[Response]:
        """Find the likeliest continuations of prompts, as ``transformers`` does with ``num_beams`` and no sampling.

        Args:
            prompts: As for :meth:`generate`.
            beam_width: Sequences that are followed at once.
            n: How many of the best to return; all of them when absent.
            progress: As for :meth:`generate`.
            params: Further fields of :class:`~sagellm_protocol.sampling.SamplingParams`: ``max_tokens``,
                ``length_penalty``, ``early_stopping``, ``ignore_eos``, ``stop_token_ids``, ``logprobs``, …

        Returns:
            An answer a prompt, in their order; its ``outputs`` are best first, each with its ``score``.

        Raises:
            SageLLMError: As for :meth:`generate`; ``INVALID_REQUEST`` for what a search does not go by.
        """
        asked = {"temperature": 0.0, "beam_width": beam_width, "n": beam_width if n is None else n, **params}
        try:
            sampling = SamplingParams.model_validate(asked)
        except ValidationError as error:
            raise SageLLMError.from_validation(error) from error
        return self.generate(prompts, sampling, progress=progress)

    def embed(
        self,
        inputs: Prompt | Sequence[Prompt],
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        truncate: bool = False,
    ) -> EmbedResponse:
        """Make one vector of each input; all of them at once, as far as the engine has room.

        Args:
            inputs: One, or several. An input is text, or token ids.
            dimensions: Keep this many leading ones, for models that were trained so.
            normalize: Make each vector's length one.
            truncate: Cut inputs that are too long instead of refusing them.

        Returns:
            ``vectors`` in the order of the inputs, and ``usage``.

        Raises:
            SageLLMError: ``UNSUPPORTED`` for a model that makes none, with what to do; what is wrong with an input.
        """
        fields = {
            "inputs": tuple(one if isinstance(one, str) else tuple(one) for one in _prompts(inputs)),
            "dimensions": dimensions,
            "normalize": normalize,
            "truncate": truncate,
        }
        return self._run(self._engine.embed(self._request(EmbedRequest, fields)))

    def score(self, query: str, documents: str | Sequence[str], *, truncate: bool = False) -> ScoreResponse:
        """Say how well each document answers a query.

        Args:
            query: What is looked for.
            documents: One, or several.
            truncate: Cut texts that are too long instead of refusing them.

        Returns:
            ``scores`` in the order of the documents, and ``usage``. A cross-encoder's scores are its own; an embedding
            model's are cosines.

        Raises:
            SageLLMError: As :meth:`embed`.
        """
        listed = (documents,) if isinstance(documents, str) else tuple(documents)
        fields = {"query": query, "documents": listed, "truncate": truncate}
        return self._run(self._engine.score(self._request(ScoreRequest, fields)))

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None, truncate: bool = False
    ) -> list[Ranked]:
        """Put documents in order of how well they answer a query, the best first.

        Args:
            query: What is looked for.
            documents: At least one.
            top_n: Return this many at most.
            truncate: As for :meth:`score`.

        Raises:
            SageLLMError: As :meth:`embed`; ``INVALID_REQUEST`` for a ``top_n`` below 1.
        """
        if top_n is not None and top_n < 1:
            raise SageLLMError(ErrorCode.INVALID_REQUEST, f"top_n is {top_n}; it must be at least 1", "top_n")
        documents = (documents,) if isinstance(documents, str) else tuple(documents)
        scores = self.score(query, documents, truncate=truncate).scores
        best = sorted(range(len(scores)), key=lambda index: -scores[index])
        return [Ranked(index, scores[index], documents[index]) for index in best[:top_n]]

    def load_adapter(self, name: str, path: str, *, replace: bool = False) -> None:
        """Offer a LoRA adapter from now on: ``generate(…, adapter=name)`` goes through it.

        Args:
            name: What to call it.
            path: The folder that peft saved.
            replace: Take the place of an adapter of that name.

        Raises:
            SageLLMError: What is wrong with it; ``UNSUPPORTED`` unless this was made with ``adapter_root`` (``"/"`` is
                everywhere) or ``adapters``.
        """
        try:
            adapter = AdapterSpec(name=name, path=path, replace=replace)
        except ValidationError as error:
            raise SageLLMError.from_validation(error) from error
        self._run(self._engine.load_adapter(adapter))

    def unload_adapter(self, name: str) -> None:
        """Offer an adapter no more.

        Raises:
            SageLLMError: ``NOT_FOUND``, listing those there are.
        """
        self._run(self._engine.unload_adapter(name))

    def close(self) -> None:
        """End what runs and give the memory back. Safe to call twice."""
        self._finalizer()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _request(self, kind: type[Asked], fields: Mapping[str, Any]) -> Asked:
        try:
            return kind(request_id=f"llm-{next(self._numbers)}", model=self._model, **fields)
        except ValidationError as error:
            raise SageLLMError.from_validation(error) from error

    def _answer(self, asked: Sequence[Mapping[str, Any]], sampling: Sampling, progress: bool) -> list[Response]:
        params = _params(sampling, len(asked))
        requests = [
            self._request(Request, {"sampling": chosen, **fields}) for fields, chosen in zip(asked, params, strict=True)
        ]
        with tqdm(total=len(requests), unit="req", delay=PROGRESS_AFTER_S, disable=not progress) as bar:
            return self._run(self._collect(requests, bar))

    async def _collect(self, requests: Sequence[Request], bar: tqdm[Any]) -> list[Response]:
        async def one(request: Request) -> Response:
            response = await collect(self._engine.generate(request), request.model, request.trace_id)
            bar.update()
            return response

        tasks = [asyncio.ensure_future(one(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run in the engine's loop and wait; an interrupt of the caller cancels it there."""
        if not self._finalizer.alive:
            coroutine.close()
            raise SageLLMError(ErrorCode.UNAVAILABLE, "this LLM is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _close(engine: Engine, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    asyncio.run_coroutine_threadsafe(engine.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def _prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    listed = _listed(prompts)
    if listed and isinstance(listed[0], Integral):
        return [_ids(listed)]
    return [one if isinstance(one, str) else _ids(_listed(one)) for one in listed]


def _ids(given: list[Any]) -> list[Any]:
    # NumPy's are integers in all but type.
    return [int(one) if isinstance(one, Integral) else one for one in given]


def _listed(given: object) -> list[Any]:
    if isinstance(given, (bytes, Mapping)) or not isinstance(given, Iterable):
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"a prompt is text or token ids, not {type(given).__name__} ({given!r:.100})",
            "prompts",
        )
    return list(given)


def _params(sampling: Sampling, number: int) -> Iterable[SamplingParams]:
    if sampling is None or isinstance(sampling, SamplingParams):
        return [sampling or SamplingParams()] * number
    given: object = sampling
    if not isinstance(given, Sequence) or not all(isinstance(one, SamplingParams) for one in given):
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"sampling_params is SamplingParams, or a list of them, not {sampling!r:.100}",
            "sampling_params",
        )
    if len(sampling) != number:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"{len(sampling)} sampling_params for {number} prompts; give one for all, or one for each",
            "sampling_params",
        )
    return sampling


def _is_turn(value: object) -> bool:
    return isinstance(value, (Message, Mapping))
