"""The engine as the rest of the world sees it: takes requests, talks to a core wherever it runs, answers with events.

Knows text and the core's messages; nothing of models, devices or scheduling. Imports neither torch nor what does.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from sagellm_core.core.plan import Pooled
from sagellm_core.core.request import CoreOutput, CoreRequest, PoolRequest
from sagellm_core.tokenizer import load_tokenizer
from sagellm_core.tokenizer.inputs import Encoded
from sagellm_core.transport.base import CoreClient
from sagellm_core.transport.messages import KVChanges, Ready
from sagellm_protocol import features, tracing
from sagellm_protocol.blocks import KVEventBatch
from sagellm_protocol.devices import DeviceInfo
from sagellm_protocol.engine import AdapterSpec, EngineCapabilities, EngineInfo, EngineSpec, EngineState, EngineStats
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.events import ErrorEvent, StreamEvent, is_terminal
from sagellm_protocol.interfaces import RenderedPrompt, RequestEnding, SleepMode, check_sleep
from sagellm_protocol.logs import name_of, naming
from sagellm_protocol.requests import EmbedRequest, Request, ScoreRequest
from sagellm_protocol.responses import EmbedResponse, ScoreResponse, Vector

from .adapters import FrontAdapters
from .constraint import Constraint, need_grammars
from .form import OutputForm, choose_form
from .inputs import InputReader, input_reader
from .job import Job
from .kv_feed import KVFeed
from .link import CoreLink
from .offers import capabilities, offered_features
from .pooled import PooledJob, Values, cosines
from .renderer import OFFLOAD_CHARACTERS, PromptRenderer
from .sampling import choice_seeds, resolve_sampling
from .search import SearchJob, search_of, tickets_of
from .spans import span_of

logger = logging.getLogger(__name__)

_BEFORE_THE_CORE = {
    ErrorCode.CANCELLED: RequestEnding.CANCELLED,
    ErrorCode.DEADLINE_EXCEEDED: RequestEnding.EXPIRED,
}
"""How a request ended that never reached the core, where it was not refused."""


class FrontEngine:
    """One model behind one core; implements :class:`sagellm_protocol.interfaces.Engine`.

    Belongs to the event loop it was started on.

    Args:
        spec: What was asked for.
        locate: Finds a model on this host by name and revision, fetching it if need be; called in a thread.
        connect: Makes the way to a core of that model.
        engine_id: Its id; made up when absent.
        called_off: Set while what ``locate`` finds is not wanted any more.
    """

    def __init__(
        self,
        spec: EngineSpec,
        locate: Callable[[str, str | None], Path],
        connect: Callable[[EngineSpec, Path], CoreClient],
        engine_id: str | None = None,
        called_off: threading.Event | None = None,
    ) -> None:
        self._spec = spec
        self._locate = locate
        self._called_off = called_off or threading.Event()
        self._connect = connect
        self._engine_id = engine_id or f"sagellm-{uuid.uuid4().hex[:12]}"
        self._state = EngineState.STARTING
        self._error: str | None = None
        self._version = metadata.version("isagellm-core")
        self._features: frozenset[str] = frozenset()
        self._core: Ready | None = None
        self._link: CoreLink | None = None
        self._renderer: PromptRenderer | None = None
        self._form: OutputForm | None = None
        self._reader: InputReader | None = None
        self._starting: asyncio.Task[None] | None = None
        self._jobs: dict[int, Job | PooledJob] = {}
        self._by_id: dict[str, Job | PooledJob] = {}
        self._claimed: set[str] = set()  # ids of requests that are being rendered
        self._given_up: set[str] = set()  # those of them that were aborted meanwhile
        self._memory = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tickets = count()
        self._random = random.Random(spec.seed)
        self._ended = dict.fromkeys(RequestEnding, 0)
        self._kv_feed = KVFeed(self._engine_id)
        self._adapters = FrontAdapters(spec)

    # -- what it says of itself ---------------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        """What it says of itself now."""
        core = self._core
        return EngineInfo(
            engine_id=self._engine_id,
            engine=self._spec.engine,
            version=self._version,
            model=self._spec.model,
            model_key=None if core is None else core.model_key,
            served_names=self._spec.names,
            state=self._state,
            error=self._error,
            capabilities=EngineCapabilities() if core is None else capabilities(core, self._features, self._spec),
            device=None if core is None else DeviceInfo.model_validate_json(core.device),
            adapters=self._adapters.infos,
        )

    @property
    def renderer(self) -> PromptRenderer:
        """Renders prompts for its model.

        Raises:
            SageLLMError: ``UNAVAILABLE`` before the engine has started.
        """
        if self._renderer is None:
            raise SageLLMError(ErrorCode.UNAVAILABLE, f"the engine has not started; it is {self._state.value}")
        return self._renderer

    async def stats(self) -> EngineStats:
        """Load and counters; as the core answers, or as last known where it does not answer at once."""
        link = self._link
        if link is not None and self._core is not None:
            await link.refresh()
        return EngineStats(
            state=self._state,
            heartbeat_age_s=None if link is None else link.silence_s,
            completed=self._ended[RequestEnding.COMPLETED],
            failed=self._ended[RequestEnding.FAILED],
            cancelled=self._ended[RequestEnding.CANCELLED],
            expired=self._ended[RequestEnding.EXPIRED],
            refused=self._ended[RequestEnding.REFUSED],
            adapters=None if self._adapters.infos is None else len(self._adapters.infos),
            **({} if link is None or link.stats is None else msgspec.structs.asdict(link.stats)),
        )

    def kv_events(self) -> AsyncGenerator[KVEventBatch, None]:
        """Changes of its prefix cache from this call on; ends when the engine stops."""
        events = self._kv_feed.subscribe()
        if self._core is not None and self._link is not None:
            self._link.watch()
        return events

    def logs(self, lines: int = 100) -> Sequence[str]:
        """The last lines its core wrote, where they are kept apart."""
        return () if self._link is None else self._link.logs(lines)

    # -- its life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load, and return once requests can be served.

        Raises:
            SageLLMError: With the root cause and its fix.
        """
        if self._state is EngineState.READY:
            return
        if self._starting is not None or self._state is EngineState.DRAINING:
            raise SageLLMError(ErrorCode.CONFLICT, f"the engine cannot be started: it is {self._state.value}")
        self._state, self._error = EngineState.STARTING, None
        self._starting = asyncio.ensure_future(self._load())
        try:
            await self._starting
        except asyncio.CancelledError:
            stopped = self._starting.cancelled() and self._state is EngineState.STOPPED
            self._starting.cancel()
            await asyncio.wait([self._starting])
            self._state = EngineState.STOPPED
            if stopped:
                raise SageLLMError(ErrorCode.UNAVAILABLE, "the engine was stopped while it started") from None
            raise
        except SageLLMError as error:
            self._state, self._error = EngineState.ERROR, error.message
            raise
        except Exception as error:
            self._state, self._error = EngineState.ERROR, f"{type(error).__name__}: {error}"
            raise SageLLMError(ErrorCode.INTERNAL, f"the engine could not start: {self._error}") from error
        finally:
            self._starting = None
        self._settle()

    def _settle(self) -> None:
        """Become ready, unless the engine was stopped or its core died before loading's end was heard of."""
        if self._state is EngineState.STOPPED:
            raise SageLLMError(ErrorCode.UNAVAILABLE, "the engine was stopped while it started")
        if self._state is EngineState.ERROR:
            raise SageLLMError(ErrorCode.ENGINE_FAILED, self._error or "the engine core ended")
        self._state = EngineState.READY

    async def drain(self) -> None:
        """Take nothing new; return once nothing is in flight."""
        if self._state is EngineState.READY:
            self._state = EngineState.DRAINING
        await self._idle.wait()

    async def sleep(self, level: int = 1, mode: SleepMode = "wait") -> None:
        """Give up the cache and, at level 2, the weights; new requests are refused from this call on."""
        check_sleep(level, mode)
        if self._state not in (EngineState.READY, EngineState.SLEEPING):
            raise SageLLMError(ErrorCode.CONFLICT, f"the engine cannot be put to sleep: it is {self._state.value}")
        before, self._state = self._state, EngineState.SLEEPING
        await _through(self._go_to_sleep(level, mode, before))

    async def wake(self) -> None:
        """Be ready again, with an empty cache."""
        if self._state is EngineState.READY:
            return
        if self._state is not EngineState.SLEEPING:
            raise SageLLMError(ErrorCode.CONFLICT, f"the engine cannot be woken: it is {self._state.value}")
        await _through(self._wake())

    async def reload(self, model: str, revision: str | None = None) -> None:
        """Take other weights of the same shape, once what is in flight has ended."""
        if self._state not in (EngineState.READY, EngineState.SLEEPING):
            raise SageLLMError(ErrorCode.CONFLICT, f"weights cannot be reloaded: the engine is {self._state.value}")
        path = await asyncio.to_thread(self._locate, model, revision)
        if self._state not in (EngineState.READY, EngineState.SLEEPING):  # it took a while to find
            raise SageLLMError(ErrorCode.CONFLICT, f"weights cannot be reloaded: the engine is {self._state.value}")
        self._state = EngineState.SLEEPING
        await _through(self._reload(path, model, revision))

    async def _go_to_sleep(self, level: int, mode: SleepMode, before: EngineState) -> None:
        async with self._changing(EngineState.SLEEPING, back_to=before):
            if mode == "abort":
                self._fail_all(SageLLMError(ErrorCode.CANCELLED, "the engine was put to sleep"))
            await self._idle.wait()
            await self._live_link.control("sleep", level)

    async def _wake(self) -> None:
        async with self._changing(EngineState.READY, back_to=EngineState.SLEEPING):
            await self._live_link.control("wake")

    async def _reload(self, path: Path, model: str, revision: str | None) -> None:
        async with self._changing(EngineState.READY, back_to=EngineState.READY):
            await self._idle.wait()
            self._take_over(await self._live_link.control("reload", path=str(path)))
            self._spec = self._spec.model_copy(
                update={"model": model, "revision": revision, "served_names": self._spec.names}
            )

    @asynccontextmanager
    async def _changing(self, to: EngineState, *, back_to: EngineState) -> AsyncIterator[None]:
        """Take nothing new while memory changes hands: one change at a time, and a stop or a death meanwhile stands."""
        async with self._memory:
            if self._state not in (EngineState.READY, EngineState.SLEEPING):
                raise SageLLMError(ErrorCode.CONFLICT, f"the engine is {self._state.value}")
            self._state = EngineState.SLEEPING
            try:
                yield
            except BaseException:
                self._become(back_to)
                raise
            self._become(to)

    def _become(self, state: EngineState) -> None:
        if self._state is EngineState.SLEEPING:  # neither stopped nor dead by now
            self._state = state

    @property
    def _live_link(self) -> CoreLink:
        if self._link is None:
            raise SageLLMError(ErrorCode.UNAVAILABLE, "the engine was stopped")
        return self._link

    async def stop(self) -> None:
        """End what is in flight as cancelled, and the core with it."""
        self._state = EngineState.STOPPED
        self._fail_all(SageLLMError(ErrorCode.CANCELLED, "the engine was stopped"))
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        self._kv_feed.close()
        await self._unlink()

    async def _load(self) -> None:
        spec = self._spec
        await self._unlink()  # from a core that died
        self._core = None
        self._called_off.clear()
        try:
            path = await asyncio.to_thread(self._locate, spec.model, spec.revision)
            drafts = spec.speculative
            if drafts is not None and drafts.model is not None:
                place = await asyncio.to_thread(self._locate, drafts.model, drafts.revision)
                spec = spec.model_copy(update={"speculative": drafts.model_copy(update={"model": str(place)})})
        except asyncio.CancelledError:
            self._called_off.set()  # the thread goes on until it sees this
            raise
        link = self._link = CoreLink(self._connect(spec, path), self._take, self._take_kv, self._lose)
        form = asyncio.ensure_future(asyncio.to_thread(self._load_form, path))
        core = asyncio.ensure_future(link.start())
        try:
            await asyncio.wait([form, core], return_when=asyncio.FIRST_EXCEPTION)
            if form.done():
                form.result()
            ready = await core
            self._form = await form
            loaded = self._form.tokenizer
            for adapter in await self._adapters.start(link.check_adapter):
                link.welcome_adapter(adapter)
            reader = await asyncio.to_thread(input_reader, spec, path, ready, loaded)
            self._reader = reader
            self._features = offered_features(ready, self._form, trusting=spec.trust_request_chat_template)
            self._take_over(ready)
            if self._kv_feed.wanted:
                link.watch()
        except BaseException:
            core.cancel()
            await asyncio.wait([core, form])
            for task in (core, form):
                if not task.cancelled():
                    task.exception()  # one of the two is being raised; the other is not news
            await self._unlink()
            raise

    def _take_over(self, ready: Ready) -> None:
        """Serve by what a core says of itself, from its start on or since its weights have changed."""
        assert self._form is not None
        self._renderer = PromptRenderer(
            tokenizer=self._form.tokenizer,
            model_key=ready.model_key,
            vocab_size=ready.vocab_size,
            max_model_len=ready.max_model_len,
            block_size=ready.block_size,
            trust_request_chat_template=self._spec.trust_request_chat_template,
            adapter_key=self._adapters.key,
        )
        self._core = ready

    async def _unlink(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.stop()

    def _load_form(self, path: Path) -> OutputForm:
        """The tokenizer, and the form of output, for which the chat template is compiled: beside the core's start."""
        spec, place = self._spec, path
        if spec.tokenizer is not None:
            try:
                place = self._locate(spec.tokenizer, None)
            except SageLLMError as error:
                raise SageLLMError(error.code, f"tokenizer: {error.message}", "tokenizer") from error
        loaded = load_tokenizer(place, chat_template=spec.chat_template)
        return choose_form(loaded, tool_parser=spec.tool_parser, reasoning_parser=spec.reasoning_parser)

    # -- adapters -----------------------------------------------------------------------------------------------------

    async def load_adapter(self, adapter: AdapterSpec) -> None:
        """Serve a LoRA adapter from now on; returns once it is known to fit.

        Raises:
            SageLLMError: ``PERMISSION_DENIED`` without an ``adapter_root``, or for a place outside it; ``CONFLICT`` for
                a name in use; what is wrong with the adapter; ``UNAVAILABLE`` while the engine is not ready.
        """
        loaded, replaced = await self._adapters.load(adapter, self._ready_link().check_adapter)
        link = self._ready_link()
        link.welcome_adapter(loaded)
        if replaced is not None:
            link.forget_adapter(replaced)

    async def unload_adapter(self, name: str) -> None:
        """Serve it no more; requests that use it end as they would, and then its memory is given back.

        Raises:
            SageLLMError: ``NOT_FOUND``, listing those there are; ``PERMISSION_DENIED`` and ``UNAVAILABLE`` as above.
        """
        link = self._ready_link()
        key = await self._adapters.unload(name)
        if key is not None:
            link.forget_adapter(key)

    def _ready_link(self) -> CoreLink:
        if self._link is None or self._state is not EngineState.READY:
            raise SageLLMError(ErrorCode.UNAVAILABLE, f"the engine is {self._state.value}")
        return self._link

    # -- requests -----------------------------------------------------------------------------------------------------

    async def generate(
        self, request: Request, prompt: RenderedPrompt | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        """Work on a request; closing the iterator early aborts it."""
        try:
            job = await self._accept(request, prompt)
        except SageLLMError as error:
            self._ended[_BEFORE_THE_CORE.get(error.code, RequestEnding.REFUSED)] += 1
            yield ErrorEvent(request_id=request.request_id, error=error.info())
            return
        except asyncio.CancelledError:
            self._ended[RequestEnding.CANCELLED] += 1
            raise
        except Exception as error:
            with naming(name_of(request)):
                logger.exception("cannot take in request %s", request.request_id)
            self._ended[RequestEnding.FAILED] += 1
            what = f"the request could not be taken in: {type(error).__name__}: {error}"
            yield ErrorEvent(request_id=request.request_id, error=SageLLMError(ErrorCode.INTERNAL, what).info())
            return
        try:
            while True:
                for event in await job.next_events():
                    yield event
                    if is_terminal(event):
                        return
        finally:
            if job.outcome is None:
                job.abandon()
                self._leave(job)

    async def abort(self, request_id: str) -> bool:
        """End a request as cancelled; its blocks are free by the end of the step that is under way."""
        if request_id in self._claimed:
            self._given_up.add(request_id)
            return True
        job = self._by_id.get(request_id)
        if job is None:
            return False
        self._fail(job, _aborted())
        return True

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector an input; a caller that goes away aborts it.

        Raises:
            SageLLMError: ``UNSUPPORTED`` when the model makes none; as :meth:`InputReader.inputs`.
        """
        how = Pooled(dimensions=request.dimensions, normalize=request.normalize)
        job = await self._pool(request, lambda reader: reader.inputs(request), how)
        vectors = tuple(Vector(index=index, values=tuple(one)) for index, one in enumerate(await self._vectors(job)))
        return EmbedResponse(
            request_id=request.request_id,
            trace_id=request.trace_id,
            model=request.model,
            vectors=vectors,
            usage=job.usage,
        )

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """A cross-encoder's score of each document, or the cosine of its vector and the query's.

        Raises:
            SageLLMError: ``UNSUPPORTED`` when the model does neither; as :meth:`InputReader.queries`.
        """
        job = await self._pool(request, lambda reader: reader.queries(request), Pooled())
        vectors = await self._vectors(job)
        assert self._reader is not None
        return ScoreResponse(
            request_id=request.request_id,
            trace_id=request.trace_id,
            model=request.model,
            scores=tuple(one[0] for one in vectors) if self._reader.pairs else cosines(vectors[0], vectors[1:]),
            usage=job.usage,
        )

    async def _vectors(self, job: PooledJob) -> list[Values]:
        try:
            return await job.vectors()
        finally:
            if job.outcome is None:
                job.abandon()
                self._leave(job)

    def _refuse(self, request: Request | EmbedRequest | ScoreRequest) -> None:
        """Raise for what cannot be served now, or not here."""
        if self._state is EngineState.SLEEPING:
            raise SageLLMError(
                ErrorCode.UNAVAILABLE, "the engine sleeps; wake it (POST /wake_up of a gateway), or try again later"
            )
        if self._state is not EngineState.READY:
            reason = f": {self._error}" if self._error else ""
            raise SageLLMError(ErrorCode.UNAVAILABLE, f"the engine is {self._state.value}{reason}")
        features.refuse_unknown(request, self._features)
        self._adapters.named_by(request)

    async def _accept(self, request: Request, prompt: RenderedPrompt | None) -> Job:
        queued_s = time.monotonic()
        self._refuse(request)
        with self._claim(request):
            if prompt is None:
                prompt = await self.renderer.render(request)
            else:
                self.renderer.check(request, prompt.token_ids)
            constraint = await self._constraint(request, prompt)
            if constraint is not None:
                await self._teach()
            self._check_still_wanted(request)
            return self._submit(request, prompt, queued_s, constraint)

    async def _pool(
        self,
        request: EmbedRequest | ScoreRequest,
        read: Callable[[InputReader], Awaitable[Sequence[Encoded]]],
        how: Pooled,
    ) -> PooledJob:
        """Take a request for vectors in, and send it to the core."""
        queued_s = time.monotonic()
        try:
            self._refuse(request)
            assert self._reader is not None, "an engine that offers vectors has what reads for them"
            with self._claim(request):
                inputs = await read(self._reader)
                self._check_still_wanted(request)
                return self._submit_pooled(request, inputs, how, queued_s)
        except SageLLMError as error:
            self._ended[_BEFORE_THE_CORE.get(error.code, RequestEnding.REFUSED)] += 1
            raise
        except asyncio.CancelledError:
            self._ended[RequestEnding.CANCELLED] += 1
            raise
        except Exception as error:
            with naming(name_of(request)):
                logger.exception("cannot take in request %s", request.request_id)
            self._ended[RequestEnding.FAILED] += 1
            what = f"the request could not be taken in: {type(error).__name__}: {error}"
            raise SageLLMError(ErrorCode.INTERNAL, what) from error

    @contextmanager
    def _claim(self, request: Request | EmbedRequest | ScoreRequest) -> Iterator[None]:
        """Keep a request's id to it while it is turned into tokens."""
        request_id = request.request_id
        if request_id in self._by_id or request_id in self._claimed:
            raise SageLLMError(ErrorCode.CONFLICT, f"a request with id {request_id!r} is in flight", "request_id")
        self._claimed.add(request_id)
        try:
            yield
        finally:
            self._claimed.discard(request_id)
            self._given_up.discard(request_id)

    async def _constraint(self, request: Request, prompt: RenderedPrompt) -> Constraint | None:
        """What the output must follow. A long grammar is read in a thread, as nobody else is to wait for it."""
        if self._form is None:
            return None
        grammar = None if request.structured is None else request.structured.grammar
        if grammar is not None and len(grammar) >= OFFLOAD_CHARACTERS:
            return await asyncio.to_thread(self._form.constraint, request, prompt)
        return self._form.constraint(request, prompt)

    async def _teach(self) -> None:
        """Have the core know how tokens are spelt."""
        link = self._link
        if link is not None and not link.taught:
            need_grammars()
            link.teach(await asyncio.to_thread(self.renderer.tokenizer.backend.to_str))

    def _check_still_wanted(self, request: Request | EmbedRequest | ScoreRequest) -> None:
        """Raise for what changed while a request was turned into tokens."""
        if request.request_id in self._given_up:
            raise _aborted()
        if self._state is not EngineState.READY:
            self._refuse(request)

    def _submit(self, request: Request, prompt: RenderedPrompt, queued_s: float, constraint: Constraint | None) -> Job:
        core, link, params = self._core, self._link, request.sampling
        assert core is not None
        assert link is not None
        tokenizer = self.renderer.tokenizer
        grammar = None if constraint is None else constraint.grammar
        sampling = resolve_sampling(params, tokenizer, core.eos_token_ids, core.vocab_size, grammar)
        seed = self._random.getrandbits(64) if params.seed is None else params.seed
        left_s = self._time_left(request, queued_s)
        parsing = None if self._form is None else self._form.parsing(request, prompt)
        adapter = self._adapters.named_by(request)  # looked up again: it may have gone meanwhile
        if params.beam_width is not None:
            search = search_of(params, sampling, core.max_model_len - len(prompt.token_ids), core.vocab_size)
            searching = SearchJob(
                request, prompt, tokenizer, self._tickets, queued_s, parsing, search, core.vocab_size, adapter
            )
            self._extend(searching)
            self._note(searching, left_s)
            return searching
        job = Job(request, prompt, tokenizer, next(self._tickets), queued_s, parsing, constraint)
        # Before it is noted: what cannot be sent must leave nothing behind, and answers come in a later turn.
        link.add(
            CoreRequest(
                ticket=job.ticket,
                prompt=list(prompt.token_ids),
                seeds=choice_seeds(seed, params.n),
                # One token is drawn also where none is wanted, and nobody is told.
                max_tokens=core.max_model_len if params.max_tokens is None else max(1, params.max_tokens),
                sampling=sampling,
                priority=request.priority,
                cache_salt=request.cache_salt,
                name=name_of(request),
                adapter=adapter,
            )
        )
        self._note(job, left_s)
        return job

    def _extend(self, search: SearchJob) -> None:
        """Have the core do what a search asks for next, if anything."""
        assert self._link is not None
        for extension in search.extensions():
            self._link.add(extension)
            self._jobs[extension.ticket] = search

    def _submit_pooled(
        self, request: EmbedRequest | ScoreRequest, inputs: Sequence[Encoded], how: Pooled, queued_s: float
    ) -> PooledJob:
        link = self._link
        assert link is not None
        left_s = self._time_left(request, queued_s)
        job = PooledJob(request, next(self._tickets), [len(one.ids) for one in inputs])
        pooled = [msgspec.structs.replace(how, second=one.second) for one in inputs]
        ids, adapter = [one.ids for one in inputs], self._adapters.named_by(request)
        link.pool(PoolRequest(job.ticket, ids, pooled, request.priority, name_of(request), adapter))
        self._note(job, left_s)
        return job

    def _note(self, job: Job | PooledJob, left_s: float | None) -> None:
        """Keep a job that was sent to the core, until it ends or its time is over."""
        if left_s is not None:
            job.expiry = asyncio.get_running_loop().call_later(left_s, self._expire, job)
        self._jobs[job.ticket] = self._by_id[job.request.request_id] = job
        self._idle.clear()
        if logger.isEnabledFor(logging.DEBUG):
            with naming(name_of(job.request)):
                logger.debug("request %s goes to the core as ticket %d", job.request.request_id, job.ticket)

    def _time_left(self, request: Request | EmbedRequest | ScoreRequest, queued_s: float) -> float | None:
        if request.slo is None or request.slo.deadline_ms is None:
            return None
        left_s = request.slo.deadline_ms / 1e3 - (time.monotonic() - queued_s)
        if left_s <= 0:
            raise _expired(request)
        return left_s

    # -- what the core sends ------------------------------------------------------------------------------------------

    def _take(self, output: CoreOutput) -> None:
        job = self._jobs.get(output.ticket)
        if job is None:  # it was aborted, and this crossed the abort on its way
            return
        if isinstance(job, SearchJob) and output.ending is not None:
            del self._jobs[output.ticket]  # one extension of many, whatever is made of it
        try:
            enough = job.take(output)
        except Exception as error:
            with naming(name_of(job.request)):
                logger.exception("cannot make events of request %s", job.request.request_id)
            self._fail(job, SageLLMError(ErrorCode.INTERNAL, f"the output cannot be told: {error}"))
            return
        if isinstance(job, SearchJob):
            self._extend(job)
        if job.outcome is RequestEnding.COMPLETED:
            self._forget(job)
        elif job.outcome is not None:
            self._leave(job)  # one choice failed; the core still works on the others
        elif enough and self._link is not None:
            self._link.abort(job.ticket, output.index)

    def _lose(self, reason: str) -> None:
        self._state, self._error = EngineState.ERROR, reason
        logger.error("%s", reason)
        self._fail_all(SageLLMError(ErrorCode.ENGINE_FAILED, reason))
        self._kv_feed.close()

    def _take_kv(self, message: KVChanges) -> None:
        self._kv_feed.publish(message.number, message.changes, self.renderer.block_size)

    # -- endings ------------------------------------------------------------------------------------------------------

    def _expire(self, job: Job | PooledJob) -> None:
        self._fail(job, _expired(job.request))

    def _fail(self, job: Job | PooledJob, error: SageLLMError) -> None:
        job.fail(error)
        self._leave(job)

    def _fail_all(self, error: SageLLMError) -> None:
        for job in list(self._jobs.values()):
            self._fail(job, error)

    def _leave(self, job: Job | PooledJob) -> None:
        """Have the core forget a job that ended here before it did there."""
        if self._link is not None:
            for ticket in (job.ticket, *tickets_of(job)):
                self._link.abort(ticket)
        self._forget(job)

    def _forget(self, job: Job | PooledJob) -> None:
        if self._jobs.pop(job.ticket, None) is None:
            return
        for ticket in tickets_of(job):
            self._jobs.pop(ticket, None)
        assert job.outcome is not None
        self._ended[job.outcome] += 1
        if isinstance(job, Job) and tracing.enabled():
            tracing.record(span_of(job), job.request.traceparent)
        if logger.isEnabledFor(logging.DEBUG):
            with naming(name_of(job.request)):
                logger.debug("request %s ended: %s", job.request.request_id, job.outcome.value)
        del self._by_id[job.request.request_id]
        if not self._jobs:
            self._idle.set()


async def _through(work: Coroutine[Any, Any, None]) -> None:
    """Wait for what cannot be left half done; it goes on without a caller that leaves."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to raise it to
    await asyncio.shield(task)


def _aborted() -> SageLLMError:
    return SageLLMError(ErrorCode.CANCELLED, "the request was aborted")


def _expired(request: Request | EmbedRequest | ScoreRequest) -> SageLLMError:
    assert request.slo is not None
    return SageLLMError(
        ErrorCode.DEADLINE_EXCEEDED, f"the request did not end within its deadline of {request.slo.deadline_ms:g} ms"
    )
