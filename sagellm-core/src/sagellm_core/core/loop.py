"""The engine's core: schedule, run, take in. One step after another, for as long as there is work.

Token ids in, token ids out; knows nothing of text, transports, models or tensors.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import msgspec

from sagellm_core.adapters.base import AdapterRef
from sagellm_core.executor.base import CacheLayout, Executor, ModelInfo
from sagellm_core.grammar.base import Grammar, GrammarError, Grammars
from sagellm_core.offload.layout import BlockLayout, layout_of
from sagellm_core.offload.offload import Offload
from sagellm_core.offload.shelf import Shelf
from sagellm_protocol.backend import KVSpec
from sagellm_protocol.blocks import BlockHash, root_hash
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.logs import naming

from .adapter_places import AdapterPlaces
from .block_manager import BlockManager, group_specs
from .block_pool import Observers
from .kv_log import KVLog
from .no_blocks import NoBlocks
from .plan import SlotResult, StepPlan, TokenSampling
from .process_memory import PeakMemory
from .request import Beginning, CoreOutput, CoreRequest, CoreStats, Ending, PoolRequest
from .scheduler import Scheduler, Step
from .sequence import Finish, Sequence, Status
from .sizing import CoreLimits
from .speculation import DraftPolicy
from .step_log import StepLog

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 3
"""Steps that may fail one after another before the executor counts as broken."""

Outputs = dict[Hashable, list[CoreOutput]]
"""What happened, by the origin of the requests it happened to."""


class CoreBroken(RuntimeError):
    """The executor fails whatever it is given."""


@dataclass
class _Request:
    """A request in the core: its continuations, and what is measured of them together."""

    origin: Hashable
    ticket: int
    sequences: list[Sequence]
    live: int
    kv_tokens: int = 0
    kv_bytes: int = 0
    prompt_logprobs_sent: int = 0
    name: str | None = None
    grammar: Grammar | None = None  # held, so that it is there whenever a sequence of it is admitted


class EngineCore:
    """Continuous batching over one executor.

    Args:
        executor: Loaded; its cache is made here.
        limits: How large it is.
        prefix_caching: Whether prefixes outlive the sequences that computed them.
        grammars: Compiles what output must follow; the executor has the same. Without it such requests are refused.
        open_shelf: Opens what keeps blocks outside the device, given how they lie.
        drafting: Says how many tokens to draft, where the executor drafts any.
        step_log: Where each step is noted.
        adapters: Keeps those in memory that steps need. Without it requests that name one are refused.

    Attributes:
        kv_log: What changes in the prefix cache, and in what is kept outside the device.
        wake: Called from another thread when :meth:`settle` has something to do.
        adapters: As given.
    """

    def __init__(
        self,
        executor: Executor,
        limits: CoreLimits,
        *,
        prefix_caching: bool = True,
        grammars: Grammars | None = None,
        open_shelf: Callable[[BlockLayout], Shelf] | None = None,
        drafting: DraftPolicy | None = None,
        step_log: StepLog | None = None,
        adapters: AdapterPlaces | None = None,
    ) -> None:
        self.limits = limits
        self.kv_log = KVLog()
        self.wake: Callable[[], None] = _nobody_waits
        self.adapters = adapters
        if adapters is not None:
            adapters.wake = self._wake
        self._grammars = grammars
        self._drafting = drafting
        self._step_log = step_log
        self._held = 0
        self._compiled: deque[tuple[int, Future[Grammar]]] = deque()
        self._executor = executor
        self._prefix_caching = prefix_caching
        info = executor.info
        groups = group_specs(info.kv_specs)
        self._blocks: BlockManager | NoBlocks = NoBlocks(limits.block_size)
        observers = Observers(self.kv_log)
        if groups:
            self._blocks = BlockManager(
                [spec.window for spec in groups],
                limits.num_blocks,
                limits.block_size,
                keep=prefix_caching,
                observer=observers,
            )
        self._scheduler = Scheduler(
            self._blocks,
            limits.max_num_seqs,
            limits.max_num_batched_tokens,
            before_release=self._measure,
            hold=self._waits_for_blocks,
            drafting=drafting,
            whole=not groups,
            adapters=adapters,
        )
        self._kv_bytes = executor.allocate(
            CacheLayout(limits.num_blocks, limits.block_size, limits.max_num_seqs, limits.max_model_len)
        )
        self._block_bytes = _block_bytes(info.kv_specs, groups, self._kv_bytes, limits.num_blocks)
        self._open_shelf = open_shelf
        self._observers = observers
        self._offload: Offload | None = None
        self._reopen_offload()
        self._asleep = False
        self._model_key = info.model_key
        self._arrivals = count()
        self._requests: dict[int, _Request] = {}
        self._by_ticket: dict[tuple[Hashable, int], int] = {}
        self._peak_memory = PeakMemory()
        self._stalled = False
        self._failures = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0

    @property
    def info(self) -> ModelInfo:
        """The model that is loaded."""
        return self._executor.info

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    @property
    def has_work(self) -> bool:
        """Whether :meth:`step` would do anything."""
        return bool(self._requests) and not self._stalled

    @property
    def steps(self) -> int:
        """Steps made so far."""
        return self._scheduler.steps

    @property
    def has_chores(self) -> bool:
        """Whether :meth:`settle` would do anything, with nothing to wait for."""
        return self._offload is not None and self._offload.has_work

    def add(self, request: CoreRequest, origin: Hashable = None) -> None:
        """Take a request in; it is waiting from now on.

        Raises:
            ValueError: It can never be run; nothing has changed. The front has looked, so this is a fault of its own.
        """
        length, longest = len(request.prompt), self.limits.max_model_len
        if not 0 < length < longest:
            raise ValueError(f"a prompt of {length} tokens leaves no room in a context of {longest}")
        self._check_awake()
        if (origin, request.ticket) in self._by_ticket:
            raise ValueError(f"ticket {request.ticket} is in flight already")
        if request.sampling.grammar is not None and self._grammars is None:
            raise ValueError("this core compiles no grammars")
        self._check_adapter(request.adapter)
        number = next(self._arrivals)
        root = self._root(number, request.cache_salt, request.adapter)
        now = time.monotonic()
        sequences: list[Sequence] = []
        for index, seed in enumerate(request.seeds):
            sampling = msgspec.structs.replace(request.sampling, seed=seed)
            if index:  # the same for all, and reported once
                sampling = msgspec.structs.replace(sampling, prompt_logprobs=None)
            key = (request.priority, next(self._arrivals))
            sequence = Sequence(
                number,
                index,
                key,
                request.prompt,
                sampling,
                min(length + request.max_tokens, longest),
                root,
                sequences[0] if sequences else None,
                adapter=request.adapter,
            )
            sequence.times.added = now
            sequences.append(sequence)
        if not request.goes_on:
            self._prompt_tokens += length
        self._enter(number, origin, request.ticket, sequences, request.name, request.sampling.grammar)

    def add_pooled(self, request: PoolRequest, origin: Hashable = None) -> None:
        """Take inputs in that are to be read; each ends with its vector.

        Raises:
            ValueError: As :meth:`add`.
        """
        longest = self.limits.max_model_len
        if self._executor.info.pooling is None:
            raise ValueError("this model makes no vectors")
        self._check_awake()
        for tokens in request.inputs:
            if not 0 < len(tokens) <= longest:
                raise ValueError(f"an input of {len(tokens)} tokens does not fit a context of {longest}")
        if (origin, request.ticket) in self._by_ticket:
            raise ValueError(f"ticket {request.ticket} is in flight already")
        self._check_adapter(request.adapter)
        number = next(self._arrivals)
        root = self._root(number, None, request.adapter)
        now = time.monotonic()
        sequences: list[Sequence] = []
        for index, (tokens, pooled) in enumerate(zip(request.inputs, request.pooled, strict=True)):
            sequence = Sequence(
                number,
                index,
                (request.priority, next(self._arrivals)),
                tokens,
                TokenSampling(),
                len(tokens),
                root,
                pooled=pooled,
                read_whole=self._executor.info.pooling == "mean",
                adapter=request.adapter,
            )
            sequence.times.added = now
            sequences.append(sequence)
        self._prompt_tokens += sum(map(len, request.inputs))
        self._enter(number, origin, request.ticket, sequences, request.name)

    def _root(self, number: int, salt: str | None, adapter: AdapterRef | None) -> BlockHash:
        # Without a prefix cache only siblings may share, under a root that is theirs alone.
        key = None if adapter is None else adapter.key
        return root_hash(self._model_key, key, salt if self._prefix_caching else f"request {number}")

    def _wake(self) -> None:
        # Whoever serves the core says how it is woken once the core is made.
        self.wake()

    def _check_awake(self) -> None:
        if self._asleep:  # another front had it sleep
            raise ValueError("the core sleeps")

    def _check_adapter(self, adapter: AdapterRef | None) -> None:
        if adapter is not None and self.adapters is None:
            raise ValueError("this core takes no adapters")

    def _enter(
        self,
        number: int,
        origin: Hashable,
        ticket: int,
        sequences: list[Sequence],
        name: str | None,
        grammar: str | None = None,
    ) -> None:
        self._requests[number] = _Request(origin, ticket, sequences, len(sequences), name=name)
        self._by_ticket[origin, ticket] = number
        self._stalled = False
        for sequence in sequences:
            if sequence.adapter is not None and self.adapters is not None:
                self.adapters.enter(sequence.adapter)
        if grammar is not None:
            self._hold(number, sequences, grammar)
            return
        for sequence in sequences:
            self._scheduler.add(sequence)

    def teach(self, vocabulary: str) -> None:
        """Say how tokens are spelt, before the first request with a grammar; a ``tokenizer.json``."""
        if self._grammars is not None:
            self._grammars.teach(vocabulary)

    def settle(self) -> Outputs:
        """Let those go on whose grammars were compiled or adapters read; those whose could not be, end. Copy blocks."""
        outputs: Outputs = {}
        if self._offload is not None and self._offload.work():
            self._stalled = False
        if self.adapters is not None:
            self._settle_adapters(self.adapters, outputs)
        while self._compiled:
            number, compiled = self._compiled.popleft()
            request = self._requests.get(number)
            if request is None:  # aborted meanwhile
                continue
            self._stalled = False
            problem = compiled.exception()
            if problem is None:
                request.grammar = compiled.result()
            elif not isinstance(problem, GrammarError):
                with naming(request.name):
                    logger.error("a grammar could not be compiled", exc_info=problem)
            for sequence in request.sequences:
                if sequence.status is not Status.HELD:
                    continue
                self._held -= 1
                if problem is None:
                    sequence.status = Status.WAITING
                    self._scheduler.add(sequence)
                else:
                    refused = isinstance(problem, GrammarError)
                    sequence.finish = Finish.REFUSED if refused else Finish.FAILED
                    sequence.error = str(problem) if refused else f"{type(problem).__name__}: {problem}"
                    self._end(sequence, outputs)
        return outputs

    def _settle_adapters(self, adapters: AdapterPlaces, outputs: Outputs) -> None:
        before = adapters.pending
        failed = adapters.settle()
        if before:
            self._stalled = False
        for sequence in [one for one in self._scheduler.waiting if one.adapter is not None] if failed else ():
            assert sequence.adapter is not None
            problem = failed.get(sequence.adapter.key)
            if problem is not None:
                fault = isinstance(problem, SageLLMError)
                sequence.finish = Finish.UNREADABLE if fault else Finish.FAILED
                sequence.error = str(problem) if fault else f"{type(problem).__name__}: {problem}"
                self._end(sequence, outputs)

    def _hold(self, number: int, sequences: list[Sequence], grammar: str) -> None:
        assert self._grammars is not None
        for sequence in sequences:
            sequence.status = Status.HELD
        self._held += len(sequences)
        self._grammars.compile(grammar).add_done_callback(lambda compiled: self._note_compiled(number, compiled))

    def _note_compiled(self, number: int, compiled: Future[Grammar]) -> None:
        # In whichever thread it happens.
        self._compiled.append((number, compiled))
        self.wake()

    def abort(self, origin: Hashable, ticket: int, index: int | None = None) -> Outputs:
        """End a request, or one of its continuations, as cancelled; its blocks are free when this returns."""
        outputs: Outputs = {}
        number = self._by_ticket.get((origin, ticket))
        if number is not None:
            for sequence in self._requests[number].sequences:
                if index in (None, sequence.index) and sequence.status is not Status.FINISHED:
                    self._held -= sequence.status is Status.HELD
                    sequence.finish = Finish.CANCELLED
                    self._end(sequence, outputs)
        return outputs

    def step(self) -> Outputs:
        """Run one step.

        A step that fails ends the requests in it as failed and harms no others.

        Raises:
            CoreBroken: Several steps in a row have failed.
        """
        outputs: Outputs = {}
        started = time.perf_counter()
        step = self._scheduler.schedule()
        if step is None:
            self._stalled = True  # until something leaves or arrives
            return outputs
        self._note_times(step)
        for sequence in step.ended:
            self._end(sequence, outputs)
        plan = step.plan
        if plan is None:
            return outputs
        began = time.perf_counter()
        begun = 0.0 if self._drafting is None else self._drafting.clock()
        try:
            result = self._executor.run(plan).result()
        except Exception as error:  # whatever it is, it is reported to those it happened to
            with naming(self._names(step.rows)):
                logger.exception("step %d failed", plan.step)
            self._fail(step.rows, plan, error, outputs)
            if self._step_log is not None:
                self._step_log.write(step, plan, None, self._load(), (started, began, time.perf_counter()))
            return outputs
        self._failures = 0
        ran = time.perf_counter()
        if self._offload is not None:
            self._offload.stepped(plan.num_scheduled, ran - began)
        by_slot = {produced.slot: produced for produced in result.slots}
        if self._drafting is not None:
            self._note_drafts(self._drafting, step, plan, by_slot, self._drafting.clock() - begun)
        drafts = plan.drafts or [0] * len(step.rows)
        for sequence, scheduled, drafted, samples in zip(
            step.rows, plan.num_scheduled, drafts, plan.samples, strict=True
        ):
            self._take_in(sequence, scheduled + drafted, samples, by_slot.get(sequence.slot), outputs)
        if self._step_log is not None:
            self._step_log.write(step, plan, result, self._load(), (started, began, ran))
        return outputs

    def _load(self) -> dict[str, int]:
        """What runs, waits and is held, for the log of steps."""
        scheduler, counts = self._scheduler, self._blocks.counts()
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting) + self._held,
            "free_blocks": counts.free,
            "cached_blocks": counts.cached,
            "used_blocks": counts.used,
            "hit_tokens": self._blocks.hit_tokens,
        }

    def _names(self, rows: Iterable[Sequence]) -> str | None:
        """What log lines call the requests of some sequences."""
        names = dict.fromkeys(self._requests[sequence.request].name for sequence in rows)
        return ",".join(name for name in names if name is not None) or None

    def sleep(self, level: int) -> None:
        """Give up the cache and, at level 2, the weights; what is to outlive the cache is written first.

        Raises:
            SageLLMError: ``CONFLICT`` while requests are in flight.
        """
        self._empty()
        self._asleep = True
        self._executor.sleep(level)

    def wake_up(self) -> None:
        """Be able to step again.

        Raises:
            SageLLMError: Why not; it still sleeps.
        """
        if self._asleep:
            self._executor.wake()
            self._asleep = False

    def reload(self, path: Path) -> None:
        """Take the weights of another model of the same shape; nothing of the cache holds any more.

        Raises:
            SageLLMError: ``CONFLICT`` while requests are in flight; as :meth:`Executor.reload`.
        """
        self._empty()
        try:
            self._executor.reload(path)
        finally:
            self._asleep = False
            if self._executor.info.model_key != self._model_key:
                self._model_key = self._executor.info.model_key
                self.kv_log.cleared()
                self._reopen_offload()

    def _empty(self) -> None:
        if self._requests:
            raise SageLLMError(
                ErrorCode.CONFLICT, f"{len(self._requests)} requests are in flight; wait for them, or abort them"
            )
        if self._offload is not None:
            self._offload.flush()
        self._blocks.clear()
        if self.adapters is not None:
            self.adapters.vacate()

    def stats(self) -> CoreStats:
        """Its load now."""
        scheduler, counts = self._scheduler, self._blocks.counts()
        queued = sum(sequence.uncomputed for sequence in scheduler.waiting if sequence.leader is None)
        queued += sum(max(0, sequence.uncomputed - 1) for sequence in scheduler.running)
        return CoreStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + self._held,
            queued_prompt_tokens=queued,
            total_blocks=sum(counts),
            free_blocks=counts.free,
            cached_blocks=counts.cached,
            used_blocks=counts.used,
            leased_blocks=counts.leased,
            kv_bytes=self._kv_bytes,
            peak_mem_mb=self._peak_memory.read_mb(),
            steps=scheduler.steps,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            prefix_queried_tokens=self._blocks.queried_tokens,
            prefix_hit_tokens=self._blocks.hit_tokens,
            preemptions=scheduler.preemptions,
            evicted_blocks=self._blocks.evicted,
            adapters_in_memory=None if self.adapters is None else self.adapters.in_memory,
            **({} if self._offload is None else self._offload.stats()),
            drafted_tokens=None if self._drafting is None else self._drafting.drafted,
            accepted_tokens=None if self._drafting is None else self._drafting.accepted,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless blocks, sequences and requests agree with one another."""
        running = self._scheduler.running
        self._blocks.check_integrity(running)
        assert all(not sequence.tables for sequence in self._scheduler.waiting), "a waiting sequence holds blocks"
        live = [s for request in self._requests.values() for s in request.sequences if s.status is not Status.FINISHED]
        held = sum(sequence.status is Status.HELD for sequence in live)
        assert held == self._held, "a sequence waits for its grammar, and is not counted"
        assert len(live) == len(running) + len(self._scheduler.waiting) + held, (
            "a live sequence is neither running nor waiting"
        )
        assert len(self._by_ticket) == len(self._requests), "a ticket outlived its request"
        assert not any(sequence.num_scheduled for sequence in live), "a token is scheduled between steps"
        if self.adapters is not None:
            self.adapters.check_integrity(*([one.adapter for one in some if one.adapter] for some in (running, live)))

    def stop(self) -> None:
        """Give up the executor; compile and read nothing more. What is to outlive it is written first."""
        if self.adapters is not None:
            self.adapters.stop()
        if self._grammars is not None:
            self._grammars.stop()
        if self._offload is not None:
            self._offload.stop()
        if self._step_log is not None:
            self._step_log.close()
        self._executor.stop()

    def _reopen_offload(self) -> None:
        """Keep blocks where those of the model that is loaded belong."""
        if self._open_shelf is None:
            return
        before, self._offload = self._offload, None
        if before is not None:
            self._observers.drop(before)
            before.stop()
        # Where none can be opened, nothing is kept: the one before has stopped, and writes no more.
        self._offload = self._open_offload(self._open_shelf)
        self._observers.add(self._offload)

    def _open_offload(self, open_shelf: Callable[[BlockLayout], Shelf]) -> Offload:
        assert isinstance(self._blocks, BlockManager)
        assert len(self._blocks.pools) == 1, "a block of several groups has no one place"
        limits, executor = self.limits, self._executor
        layout = layout_of(executor.info, executor.kv_layout, limits.block_size, self._kv_bytes // limits.num_blocks)
        return Offload(
            self._blocks.pools[0],
            limits.block_size,
            executor,
            open_shelf(layout),
            self.kv_log,
            lambda: self.wake(),  # noqa: PLW0108 - it is replaced by whoever serves
        )

    def _waits_for_blocks(self, sequence: Sequence) -> bool:
        return self._offload is not None and self._offload.hold(sequence)

    def _take_in(
        self, sequence: Sequence, scheduled: int, samples: bool, produced: SlotResult | None, outputs: Outputs
    ) -> None:
        """Account for one row: what was computed, what was produced, and what of it was rejected."""
        sequence.num_scheduled = 0
        if produced is not None and produced.error is not None:
            sequence.finish, sequence.error = Finish.FAILED, produced.error
            with naming(self._requests[sequence.request].name):
                logger.error("the sequence in slot %d fails: %s", sequence.slot, produced.error)
            self._end(sequence, outputs)
            return
        output: CoreOutput | None = None
        computed = sequence.num_computed + scheduled
        if produced is not None:
            request = self._requests[sequence.request]
            before = len(sequence.tokens)
            taken = sequence.append(produced.token_ids)
            self._generation_tokens += taken
            if produced.complete and taken == len(produced.token_ids):
                sequence.finish = Finish.STOP  # its last token may have been the last that it might have, too
            output = CoreOutput(request.ticket, sequence.index, produced.token_ids[:taken], produced.logprobs[:taken])
            if produced.vector is not None:
                sequence.finish, output.vector = Finish.STOP, produced.vector
            begins = before == sequence.prompt_len and (taken or output.vector is not None)
            if begins and sequence.times.scheduled is not None:
                waited = sequence.times.scheduled - sequence.times.added
                output.beginning = Beginning(waited, sequence.cached_tokens)
            if produced.prompt_logprobs:
                # Computed again after a preemption, they are not reported again.
                repeated = max(0, request.prompt_logprobs_sent - sequence.num_computed)
                output.prompt_logprobs = produced.prompt_logprobs[repeated:]
                request.prompt_logprobs_sent += len(output.prompt_logprobs)
        # The newest token is never cached: whatever was scheduled beyond the one before it was rejected, and is
        # computed again.
        sequence.num_computed = min(computed, len(sequence.tokens) - 1) if samples else computed
        self._blocks.advance(sequence)
        if sequence.finish is not None:
            self._end(sequence, outputs, output)
        elif output is not None:
            outputs.setdefault(self._requests[sequence.request].origin, []).append(output)

    def _end(self, sequence: Sequence, outputs: Outputs, output: CoreOutput | None = None) -> None:
        """Let a sequence go, in whatever state it is, and report how it ended."""
        request = self._requests[sequence.request]
        self._scheduler.leave(sequence)
        if self._offload is not None:
            self._offload.forget(sequence)
        if sequence.adapter is not None and self.adapters is not None:
            self.adapters.end(sequence.adapter)
        self._stalled = False
        if sequence.times.preempted is not None:
            sequence.times.evicted_s += time.monotonic() - sequence.times.preempted
        output = output or CoreOutput(request.ticket, sequence.index)
        assert sequence.finish is not None
        output.ending = Ending(
            finish=sequence.finish,
            stop_token=sequence.stop_token,
            message=sequence.error,
            preemptions=sequence.preemptions,
            evicted_s=sequence.times.evicted_s,
            kv_tokens=request.kv_tokens,
            kv_bytes=request.kv_bytes,
            peak_mem_mb=self._peak_memory.read_mb(),
            drafted=None if sequence.drafting is None else sequence.drafting.drafted,
            accepted=None if sequence.drafting is None else sequence.drafting.accepted,
        )
        outputs.setdefault(request.origin, []).append(output)
        request.live -= 1
        if not request.live:
            del self._requests[sequence.request]
            del self._by_ticket[request.origin, request.ticket]

    def _fail(self, rows: list[Sequence], plan: StepPlan, error: Exception, outputs: Outputs) -> None:
        self._failures += 1
        self._scheduler.drop_again(plan)
        message = f"step {plan.step} failed: {type(error).__name__}: {error}"
        if self._failures >= FAILURES_IN_A_ROW:
            raise CoreBroken(f"{self._failures} steps in a row failed; the last: {message}") from error
        for sequence in rows:
            sequence.finish, sequence.error = Finish.FAILED, message
            self._end(sequence, outputs)

    def _note_drafts(
        self, drafting: DraftPolicy, step: Step, plan: StepPlan, by_slot: dict[int, SlotResult], seconds: float
    ) -> None:
        """Tell who decides about drafts what those of a step brought and cost."""
        brought = []
        for sequence, slot in zip(step.rows, plan.slots, strict=True):
            made = by_slot.get(slot)
            if made is not None and made.drafted and sequence.drafting is not None:
                length = len(sequence.tokens) + len(made.token_ids)
                brought.append((sequence.drafting, length, made.drafted, len(made.token_ids) - 1))
        drafting.note(step.decoding, seconds, brought, pure=step.decoding == len(step.rows))

    def _note_times(self, step: Step) -> None:
        if not (step.admitted or step.preempted):
            return
        now = time.monotonic()
        for sequence in step.preempted:
            sequence.times.preempted = now
        for sequence in step.admitted:
            if self._offload is not None:
                self._offload.admitted(sequence)
            times = sequence.times
            if times.scheduled is None:
                times.scheduled = now
            if times.preempted is not None:
                times.evicted_s += now - times.preempted
                times.preempted = None

    def _measure(self, sequence: Sequence) -> None:
        """Note what a request holds before it lets go of any: holdings only grow in between.

        Nobody asks it of texts that are pooled, of which one request brings thousands.
        """
        if sequence.pooled is not None:
            return
        request = self._requests[sequence.request]
        tokens, blocks = self._blocks.held(request.sequences)
        request.kv_tokens = max(request.kv_tokens, tokens)
        held_bytes = sum(number * size for number, size in zip(blocks, self._block_bytes, strict=True))
        request.kv_bytes = max(request.kv_bytes, held_bytes)


def _nobody_waits() -> None:
    """For a core that is stepped by hand."""


def _block_bytes(specs: Iterable[KVSpec], groups: tuple[KVSpec, ...], pool_bytes: int, num_blocks: int) -> list[int]:
    """Bytes of one block of each group: the pool divided by what each layer keeps."""
    sizes = dict.fromkeys(groups, 0)
    for spec in specs:
        sizes[spec] += spec.num_kv_heads * (spec.head_dim + spec.value_dim)
    total = sum(sizes.values()) * num_blocks
    return [pool_bytes * size // total for size in sizes.values()]
