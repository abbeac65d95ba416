"""The mock engine: a real ``Engine`` whose answers are made up and whose speed, capacity and failures are told to it.

It batches continuously in virtual steps, counts KV blocks, finds prefixes, queues, preempts, aborts, expires and drains
as a real engine does, so that a control plane, a gateway or a load test may be tried against it. It says that it is a
mock in ``info.mock`` and in its text. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import struct
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from sagellm_protocol import __version__, features
from sagellm_protocol._streams import Broadcast
from sagellm_protocol.blocks import KVEventBatch, block_hashes, root_hash
from sagellm_protocol.engine import AdapterSpec, EngineCapabilities, EngineInfo, EngineSpec, EngineState, EngineStats
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.events import DeltaEvent, ErrorEvent, StartEvent, StreamEvent, Usage, is_terminal
from sagellm_protocol.interfaces import RenderedPrompt, RequestEnding
from sagellm_protocol.requests import EmbedRequest, Request, ScoreRequest
from sagellm_protocol.responses import EmbedResponse, ScoreResponse, Vector

from .clock import Clock, WallClock
from .mock.adapters import MockAdapters
from .mock.batch import Batch, Step
from .mock.choice import Choice
from .mock.job import Job
from .mock.options import read
from .mock.text import VOCAB_SIZE, MockRenderer, answer, encode

FEATURES = frozenset(
    {
        *(features.GENERATE, features.CHAT, features.ECHO, features.CACHE_SALT),
        *(features.EMBED, features.DIMENSIONS, features.SCORE, features.ADAPTER),
    }
)


def create(spec: EngineSpec) -> MockEngine:
    """Make a mock engine, as the entry point ``mock`` of ``sagellm.engines``.

    Raises:
        SageLLMError: For what the mock does not know or cannot honour, by name.
    """
    return MockEngine(spec)


class MockEngine:
    """An engine without a model.

    Args:
        spec: Its ``options`` are those of :class:`~sagellm_protocol.testing.mock.options.MockOptions`.
        clock: The time it lives in.
        engine_id: Its id; made up when absent.

    Raises:
        SageLLMError: For what the mock does not know or cannot honour, by name.
    """

    def __init__(self, spec: EngineSpec, clock: Clock | None = None, engine_id: str | None = None) -> None:
        self._spec = spec
        self._options, self._limits = read(spec)
        self._clock = clock or WallClock()
        self._engine_id = engine_id or f"mock-{uuid.uuid4().hex[:12]}"
        self._model_key = f"mock:{spec.model}"
        self._renderer = MockRenderer(self._model_key, self._limits.block_size, self._limits.max_model_len)
        self._adapters = MockAdapters(spec)
        self._features = frozenset(FEATURES if self._options.features is None else self._options.features) & FEATURES
        if not self._adapters.offered:
            self._features -= {features.ADAPTER}
        self._state = EngineState.STARTING
        self._error: str | None = None
        self._batch = Batch(self._limits, self._options.total_blocks)
        self._jobs: dict[str, Job] = {}
        self._ended = dict.fromkeys(RequestEnding, 0)
        self._hang_at = self._options.hang_after_tokens
        self._arrivals = 0
        self._steps = 0
        self._prompt_tokens = 0
        self._generated = 0
        self._alive_s = self._clock.now()
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._going = asyncio.Event()
        self._going.set()
        self._task: asyncio.Task[None] | None = None
        self._kv_events: Broadcast[KVEventBatch] = Broadcast(1024)
        self._kv_epoch = uuid.uuid4().hex
        self._kv_sequence = 0

    # -- what it says of itself ---------------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        """What it says of itself now."""
        return EngineInfo(
            engine_id=self._engine_id,
            engine="mock",
            version=__version__,
            model=self._spec.model,
            model_key=self._model_key,
            served_names=self._spec.names,
            state=self._state,
            error=self._error,
            mock=True,
            adapters=self._adapters.infos,
            capabilities=EngineCapabilities(
                features=self._features,
                max_model_len=self._limits.max_model_len,
                max_num_seqs=self._limits.max_num_seqs,
                max_num_batched_tokens=self._limits.max_num_batched_tokens,
                vocab_size=VOCAB_SIZE,
                block_size=self._limits.block_size,
                total_blocks=self._options.total_blocks,
                embedding_dimensions=self._options.embedding_dimensions,
            ),
        )

    @property
    def renderer(self) -> MockRenderer:
        """Renders bytes.

        Raises:
            SageLLMError: ``UNAVAILABLE`` until the engine has started.
        """
        if self._state is EngineState.STARTING:
            raise SageLLMError(ErrorCode.UNAVAILABLE, "the mock engine has not started")
        return self._renderer

    async def stats(self) -> EngineStats:
        """Load and counters."""
        pool, batch, ended = self._batch.pool, self._batch, self._ended
        stepping = bool(self._jobs) or not self._going.is_set()
        running = self._task is not None and not self._task.done()
        return EngineStats(
            state=self._state,
            heartbeat_age_s=(self._clock.now() - self._alive_s if stepping else 0.0) if running else None,
            running=sum(len(job.active) for job in batch.running),
            waiting=sum(len(job.active) for job in batch.waiting),
            queued_prompt_tokens=sum(job.pending for job in batch.running)
            + sum(len(job.prompt) for job in batch.waiting),
            total_blocks=pool.total,
            free_blocks=pool.free,
            cached_blocks=pool.cached,
            used_blocks=pool.used,
            leased_blocks=pool.leased,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generated,
            prefix_queried_tokens=batch.queried_tokens,
            prefix_hit_tokens=batch.hit_tokens,
            preemptions=batch.preemptions,
            evicted_blocks=pool.evicted,
            completed=ended[RequestEnding.COMPLETED],
            failed=ended[RequestEnding.FAILED],
            cancelled=ended[RequestEnding.CANCELLED],
            expired=ended[RequestEnding.EXPIRED],
            refused=ended[RequestEnding.REFUSED],
            adapters=None if self._adapters.infos is None else len(self._adapters.infos),
        )

    def kv_events(self) -> AsyncIterator[KVEventBatch]:
        """Changes of its prefix cache from now on."""
        return self._kv_events.subscribe()

    # -- its life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Wait the start-up delay, then serve."""
        if self._state is EngineState.READY:
            return
        self._state, self._error = EngineState.STARTING, None
        await self._clock.sleep(self._options.start_delay_s)
        if self._state is not EngineState.STARTING:
            raise SageLLMError(ErrorCode.UNAVAILABLE, "the mock engine was stopped while it started")
        if self._options.fail_start is not None:
            self._state, self._error = EngineState.ERROR, self._options.fail_start
            raise SageLLMError(ErrorCode.ENGINE_FAILED, f"the mock engine did not start: {self._error}")
        self._state, self._alive_s = EngineState.READY, self._clock.now()
        self._going.set()
        self._task = asyncio.create_task(self._run(), name=self._engine_id)
        self._task.add_done_callback(self._bury)

    async def drain(self) -> None:
        """Take nothing new; return once nothing is in flight."""
        if self._state is EngineState.READY:
            self._state = EngineState.DRAINING
        await self._idle.wait()

    async def stop(self) -> None:
        """End what is in flight as cancelled and stop stepping."""
        self._state = EngineState.STOPPED
        self._fail_all(ErrorCode.CANCELLED, "the engine was stopped")
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._batch.pool.clear()
        self._publish()
        self._kv_events.close()
        self._kv_events = Broadcast(1024)
        self._kv_epoch, self._kv_sequence = uuid.uuid4().hex, 0

    def die(self, reason: str = "killed by its test") -> None:
        """Die as a crashed core does: what is in flight fails, nothing new is taken, ``info.error`` says why."""
        self._state, self._error = EngineState.ERROR, reason
        self._fail_all(ErrorCode.ENGINE_FAILED, f"the mock engine died: {reason}")
        if self._task is not None:
            self._task.cancel()

    def hang(self) -> None:
        """Stop stepping, as a core that is stuck; :meth:`resume` lets it go on."""
        self._going.clear()

    def resume(self) -> None:
        """Go on after :meth:`hang`."""
        self._going.set()

    async def load_adapter(self, adapter: AdapterSpec) -> None:
        """Answer to one more name."""
        self._adapters.load(adapter)

    async def unload_adapter(self, name: str) -> None:
        """Answer to a name no more."""
        self._adapters.unload(name)

    # -- requests -----------------------------------------------------------------------------------------------------

    async def generate(
        self, request: Request, prompt: RenderedPrompt | None = None
    ) -> AsyncGenerator[StreamEvent, None]:
        """Work on a request; closing the iterator early aborts it and frees its blocks at once."""
        try:
            job = await self._accept(request, prompt)
        except SageLLMError as error:
            self._ended[RequestEnding.REFUSED] += 1
            yield ErrorEvent(request_id=request.request_id, error=error.info())
            return
        try:
            while True:
                event = await job.events.get()
                yield event
                if is_terminal(event):
                    return
        finally:
            if not job.ended:
                self._close(job, RequestEnding.CANCELLED)

    async def abort(self, request_id: str) -> bool:
        """End a request as cancelled; its blocks are free at once."""
        job = self._jobs.get(request_id)
        if job is None:
            return False
        self._fail(job, ErrorCode.CANCELLED, "the request was aborted")
        return True

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Vectors made of the inputs' digests: equal inputs have equal vectors, and that is all they say.

        Raises:
            SageLLMError: ``UNSUPPORTED``, or what a failing mock fails with.
        """
        self._admit_or_refuse(request)
        inputs = [encode(item) if isinstance(item, str) else item for item in request.inputs]
        inputs = [self._fit(tokens, truncate=request.truncate, field="inputs") for tokens in inputs]
        dimensions = request.dimensions or self._options.embedding_dimensions
        if dimensions > self._options.embedding_dimensions:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"the model's vectors have {self._options.embedding_dimensions} dimensions (asked for {dimensions})",
                "dimensions",
            )
        await self._compute(sum(map(len, inputs)))
        return EmbedResponse(
            request_id=request.request_id,
            trace_id=request.trace_id,
            model=request.model,
            vectors=tuple(
                Vector(index=index, values=_vector(tokens, dimensions, normalize=request.normalize))
                for index, tokens in enumerate(inputs)
            ),
            usage=Usage(prompt_tokens=sum(map(len, inputs))),
        )

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """The share of the query's words that each document contains.

        Raises:
            SageLLMError: ``UNSUPPORTED``, or what a failing mock fails with.
        """
        self._admit_or_refuse(request)
        query = set(request.query.lower().split())
        tokens = 0
        for document in request.documents:
            pair = encode(request.query) + encode(document)
            tokens += len(self._fit(pair, truncate=request.truncate, field="documents"))
        await self._compute(tokens)
        return ScoreResponse(
            request_id=request.request_id,
            trace_id=request.trace_id,
            model=request.model,
            scores=tuple(
                len(query & set(document.lower().split())) / max(len(query), 1) for document in request.documents
            ),
            usage=Usage(prompt_tokens=tokens),
        )

    # -- taking requests in -------------------------------------------------------------------------------------------

    def _admit_or_refuse(self, request: Request | EmbedRequest | ScoreRequest) -> None:
        """Refuse what this engine cannot or may not serve now."""
        if self._state is not EngineState.READY:
            reason = f": {self._error}" if self._error else ""
            raise SageLLMError(ErrorCode.UNAVAILABLE, f"the mock engine is {self._state.value}{reason}")
        features.refuse_unknown(request, self._features)
        self._adapters.key(request)
        if self._options.refuse is not None:
            raise SageLLMError(
                self._options.refuse,
                f"the mock engine was told to refuse with {self._options.refuse.value}",
                retry_after_s=self._options.retry_after_s,
            )

    async def _accept(self, request: Request, prompt: RenderedPrompt | None) -> Job:
        queued_s = self._clock.now()
        self._admit_or_refuse(request)
        prompt = prompt or await self._renderer.render(request)
        n, tokens = request.sampling.n, prompt.token_ids
        if n > self._limits.max_num_seqs:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"n={n} choices are more than the {self._limits.max_num_seqs} sequences this engine runs at once",
                "sampling.n",
            )
        need = self._batch.smallest_need(len(tokens), n)
        if need > self._options.total_blocks:
            raise SageLLMError(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"the prompt has {len(tokens)} tokens and needs {need} KV blocks of {self._limits.block_size};"
                f" this engine has {self._options.total_blocks}",
            )
        if request.request_id in self._jobs:
            raise SageLLMError(
                ErrorCode.CONFLICT, f"a request with id {request.request_id!r} is in flight", "request_id"
            )
        if self._options.max_waiting is not None and len(self._batch.waiting) >= self._options.max_waiting:
            raise SageLLMError(
                ErrorCode.QUEUE_FULL, f"{len(self._batch.waiting)} requests are waiting, and no more may", None
            )
        job = self._job(request, prompt, queued_s)
        self._jobs[request.request_id] = job
        self._batch.add(job)
        job.events.put_nowait(
            StartEvent(
                request_id=request.request_id,
                prompt_tokens=len(tokens),
                prompt_token_ids=tokens if request.return_token_ids else None,
            )
        )
        if request.echo:
            text = (
                prompt.text if prompt.text is not None else bytes(t for t in tokens if t < 256).decode(errors="replace")
            )
            for index in range(n):
                job.events.put_nowait(DeltaEvent(request_id=request.request_id, index=index, text=text))
        self._idle.clear()
        self._work.set()
        return job

    def _job(self, request: Request, prompt: RenderedPrompt, queued_s: float) -> Job:
        tokens, sampling, size = prompt.token_ids, request.sampling, self._limits.block_size
        root = root_hash(self._model_key, self._adapters.key(request), request.cache_salt)
        trusted = prompt.block_size == size and len(prompt.block_hashes) == len(tokens) // size
        script = self._options.text or answer(tokens)
        natural_end = self._options.output_tokens
        room = self._limits.max_model_len - len(tokens)
        self._arrivals += 1
        deadline_ms = request.slo.deadline_ms if request.slo else None
        return Job(
            request=request,
            order=(request.priority, self._arrivals),
            prompt=tokens,
            root=root,
            hashes=prompt.block_hashes if trusted else block_hashes(root, tokens, size),
            choices=[
                Choice(
                    index=index,
                    sampling=sampling,
                    script=script,
                    natural_end=len(encode(script)) if natural_end is None else natural_end,
                    limit=room if sampling.max_tokens is None else min(sampling.max_tokens, room),
                )
                for index in range(sampling.n)
            ],
            queued_s=queued_s,
            deadline_s=math.inf if deadline_ms is None else queued_s + deadline_ms / 1000,
        )

    def _fit(self, tokens: tuple[int, ...], *, truncate: bool, field: str) -> tuple[int, ...]:
        limit = self._limits.max_model_len
        if len(tokens) > limit and not truncate:
            raise SageLLMError(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"an input has {len(tokens)} tokens, more than the model's context of {limit};"
                " shorten it or set truncate",
                field,
            )
        return tokens[:limit]

    async def _compute(self, tokens: int) -> None:
        await self._going.wait()
        await self._clock.sleep(self._options.step_s(tokens, 0))
        self._prompt_tokens += tokens

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._alive_s = self._clock.now()
            if not self._jobs:
                self._work.clear()
                await self._work.wait()
                self._alive_s = self._clock.now()
            if self._reached(self._options.die_after_tokens):
                self.die(f"told to die after {self._options.die_after_tokens} tokens")
                return
            if self._reached(self._hang_at):
                self._hang_at = None
                self.hang()
            await self._going.wait()
            step = self._batch.plan(self._clock.now())
            await self._pass(self._options.step_s(step.prefill_tokens, step.decoding))
            self._commit(step)
            self._steps += 1
            self._publish()

    def _bury(self, task: asyncio.Task[None]) -> None:
        """Let nobody wait for a loop that broke."""
        if not task.cancelled() and task.exception() is not None:
            self.die(f"{task.exception()!r}")

    async def _pass(self, seconds: float) -> None:
        """Let a step's time pass; what expires meanwhile ends when it does."""
        end = self._clock.now() + seconds
        while True:
            now = self._clock.now()
            first = min((job.deadline_s for job in self._jobs.values()), default=math.inf)
            await self._clock.sleep(max(min(end, first) - now, 0.0))
            now = self._clock.now()
            for job in list(self._jobs.values()):
                if job.deadline_s <= now:
                    self._fail(job, ErrorCode.DEADLINE_EXCEEDED, "the request's deadline has passed")
            if now >= end:
                return

    def _commit(self, step: Step) -> None:
        """Make a step's results known, except those of jobs that have ended meanwhile."""
        now = self._clock.now()
        for job, choice, text in step.cut:
            if not job.ended:
                self._show(job, choice, text, ())
                self._end_if_done(job)
        ready = list(step.decode)
        for job, count in step.prefill:
            if not job.ended:
                self._prompt_tokens += count
                if self._batch.computed(job, count):
                    ready.append(job)
        for job in ready:
            if not job.ended:
                self._produce(job, now)

    def _produce(self, job: Job, now: float) -> None:
        for choice in job.active:
            limit = self._options.fail_after_tokens
            if limit is not None and job.produced >= limit:
                self._fail(job, ErrorCode.ENGINE_FAILED, f"the mock engine was told to fail after {limit} tokens")
                return
            before = len(choice.tokens)
            text = choice.produce()
            new = tuple(choice.tokens[before:])
            self._generated += len(new)
            self._show(job, choice, text, new)
            self._batch.produced(job, choice)
        if job.produced:
            job.mark_token(now)
        self._end_if_done(job)

    def _reached(self, limit: int | None) -> bool:
        return limit is not None and self._generated >= limit

    def _show(self, job: Job, choice: Choice, text: str, token_ids: tuple[int, ...]) -> None:
        if text or token_ids:
            event = DeltaEvent(request_id=job.request.request_id, index=choice.index, text=text, token_ids=token_ids)
            job.events.put_nowait(event)

    def _end_if_done(self, job: Job) -> None:
        if not job.active:
            job.events.put_nowait(job.end_event(self._clock.now()))
            self._close(job, RequestEnding.COMPLETED)

    def _fail(self, job: Job, code: ErrorCode, message: str) -> None:
        error = SageLLMError(code, message).info()
        job.events.put_nowait(ErrorEvent(request_id=job.request.request_id, error=error, usage=job.usage()))
        self._close(job, RequestEnding.of(code))

    def _fail_all(self, code: ErrorCode, message: str) -> None:
        for job in list(self._jobs.values()):
            self._fail(job, code, message)

    def _close(self, job: Job, ending: RequestEnding) -> None:
        job.ended = True
        self._ended[ending] += 1
        self._batch.remove(job)
        del self._jobs[job.request.request_id]
        if not self._jobs:
            self._idle.set()

    def _publish(self) -> None:
        events = self._batch.pool.take_events()
        if events:
            self._kv_events.send(
                KVEventBatch(engine_id=self._engine_id, epoch=self._kv_epoch, sequence=self._kv_sequence, events=events)
            )
            self._kv_sequence += 1


def _vector(tokens: Sequence[int], dimensions: int, *, normalize: bool) -> tuple[float, ...]:
    """Numbers in [-1, 1) drawn from a digest of the tokens."""
    seed = b"".join(struct.pack("<I", token) for token in tokens)
    drawn = hashlib.shake_256(seed).digest(4 * dimensions)
    values = [number / 2**31 for (number,) in struct.iter_unpack("<i", drawn)]
    length = math.sqrt(sum(value * value for value in values)) if normalize else 1.0
    return tuple(value / (length or 1.0) for value in values)
