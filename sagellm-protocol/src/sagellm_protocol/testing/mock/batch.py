"""What the mock does in a step: continuous batching under one token budget, over counted blocks.

Decides and counts; it waits for nothing and reads no clock.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from sagellm_protocol.blocks import BlockHash, block_hash

from .blocks import BlockPool
from .choice import Choice
from .job import Job
from .options import Limits

_ORDER = attrgetter("order")


@dataclass
class Step:
    """Work of one step.

    Attributes:
        prefill: Jobs that compute prompt tokens, and how many.
        decode: Jobs of which every active choice produces a token.
        cut: Choices that ended because the pool has no block left for them, and the text they had held back.
    """

    prefill: list[tuple[Job, int]] = field(default_factory=list)
    decode: list[Job] = field(default_factory=list)
    cut: list[tuple[Job, Choice, str]] = field(default_factory=list)

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens it computes."""
        return sum(count for _, count in self.prefill)

    @property
    def decoding(self) -> int:
        """Sequences that produce a token without computing a prompt."""
        return sum(len(job.active) for job in self.decode)


class Batch:
    """Jobs waiting and running, and the blocks they hold.

    Args:
        limits: Of the engine.
        total_blocks: Blocks in all.
    """

    def __init__(self, limits: Limits, total_blocks: int) -> None:
        self.limits = limits
        self.pool = BlockPool(total_blocks, limits.block_size)
        self.waiting: list[Job] = []
        self.running: list[Job] = []
        self.preemptions = 0
        self.queried_tokens = 0
        self.hit_tokens = 0

    def __iter__(self) -> Iterator[Job]:
        yield from self.running
        yield from self.waiting

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting)

    def smallest_need(self, prompt: int, n: int) -> int:
        """Blocks without which a request could never produce its first token."""
        full = prompt // self.limits.block_size
        return full + n * (self._blocks(prompt + 1) - full)

    def add(self, job: Job) -> None:
        """Queue a job."""
        bisect.insort(self.waiting, job, key=_ORDER)

    def remove(self, job: Job) -> None:
        """Forget a job and let go of what it holds."""
        if job in self.running:
            self.running.remove(job)
            self._release(job)
        elif job in self.waiting:
            self.waiting.remove(job)

    def plan(self, now: float) -> Step:
        """Choose the next step's work and take the blocks it needs."""
        step = Step()
        for job in list(self.running):
            if job in self.running and not job.pending:
                self._grow(job, step, now)
        step.decode = [job for job in self.running if not job.pending and job.active]
        budget = self.limits.max_num_batched_tokens - step.decoding
        for job in self.running:
            if job.pending and budget:
                count = min(job.pending, budget)
                step.prefill.append((job, count))
                budget -= count
        while budget and self.waiting:
            job = self.waiting[0]
            if sum(len(other.active) for other in (*self.running, job)) > self.limits.max_num_seqs:
                break
            if self._admit(job):
                self.running.append(self.waiting.pop(0))
                job.mark_scheduled(now)
                step.prefill.append((job, min(job.pending, budget)))
                budget -= step.prefill[-1][1]
            elif self.running:
                break
            else:
                # Nothing will ever leave it more room: what it has grown to since it was accepted must shrink.
                self._cut(job, max(job.active, key=lambda choice: len(choice.tokens)), step)
                if not job.active:
                    self.waiting.pop(0)
        return step

    def computed(self, job: Job, count: int) -> bool:
        """Count prompt tokens of a job as computed. True once it may produce a token."""
        job.pending -= count
        if job.pending:
            return False
        if self.limits.prefix_caching:
            for position in range(len(job.held), len(job.hashes)):
                self.pool.name(job.hashes[position], job.hashes[position - 1] if position else None)
                job.held.append(job.hashes[position])
                job.unnamed -= 1
        return True

    def produced(self, job: Job, choice: Choice) -> None:
        """Give a choice's full blocks their hashes; let go of its blocks if it has ended."""
        if self.limits.prefix_caching:
            self._name_full(job, choice)
        if choice.end is not None:
            self._release_choice(choice)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_size)

    def _admit(self, job: Job) -> bool:
        caching, size, prompt = self.limits.prefix_caching, self.limits.block_size, len(job.prompt)
        full = prompt // size
        hits = self.pool.known(job.hashes) if caching else 0
        own = {choice.index: self._blocks(prompt + len(choice.tokens) + 1) - full for choice in job.active}
        need = full - hits + sum(own.values())
        if need + self.pool.cached_among(job.hashes[:hits]) > self.pool.available:
            return False
        self.pool.hold(job.hashes[:hits])
        self.pool.take(need)
        job.held, job.unnamed = list(job.hashes[:hits]), full - hits
        for choice in job.active:
            choice.blocks = own[choice.index]
        # The prompt's last token is always computed: its logits choose the first token.
        found = min(hits * size, prompt - 1)
        job.pending = prompt - found + sum(len(choice.tokens) for choice in job.active)
        if job.cached is None:
            job.cached = found
        if caching:
            self.queried_tokens += prompt
            self.hit_tokens += found
        return True

    def _grow(self, job: Job, step: Step, now: float) -> None:
        """Take a block for each choice whose next token needs one, at the cost of those behind it in the queue."""
        full = len(job.prompt) // self.limits.block_size
        for choice in job.active:
            if full + choice.blocks >= self._blocks(len(job.prompt) + len(choice.tokens) + 1):
                continue
            while not self.pool.take(1):
                last = max(self.running, key=_ORDER)
                if last is job and len(self.running) == 1:
                    self._cut(job, choice, step)
                    break
                self._preempt(last, now)
                if last is job:
                    return
            else:
                choice.blocks += 1

    def _cut(self, job: Job, choice: Choice, step: Step) -> None:
        step.cut.append((job, choice, choice.cut()))
        self._release_choice(choice)

    def _preempt(self, job: Job, now: float) -> None:
        self.running.remove(job)
        self._release(job)
        job.preempted_s = now
        job.preemptions += 1
        self.preemptions += 1
        self.add(job)

    def _name_full(self, job: Job, choice: Choice) -> None:
        size, prompt = self.limits.block_size, len(job.prompt)
        full = prompt // size
        # The newest token's keys and values are computed by the step that reads it.
        while (full + len(choice.hashes) + 1) * size < prompt + len(choice.tokens):
            start = (full + len(choice.hashes)) * size
            before = [*job.hashes, *choice.hashes]
            parent = before[-1] if before else None
            tokens = _slice(job.prompt, choice.tokens, start, start + size)
            named: BlockHash = block_hash(parent or job.root, tokens)
            self.pool.name(named, parent)
            choice.hashes.append(named)

    def _release(self, job: Job) -> None:
        for choice in job.choices:
            self._release_choice(choice)
        self.pool.release(job.held, job.unnamed)
        job.held, job.unnamed, job.pending = [], 0, 0

    def _release_choice(self, choice: Choice) -> None:
        self.pool.release(choice.hashes, choice.blocks - len(choice.hashes))
        choice.hashes, choice.blocks = [], 0


def _slice(prompt: tuple[int, ...], output: list[int], start: int, end: int) -> list[int]:
    """Tokens ``start`` to ``end`` of a prompt and its output."""
    behind = len(prompt)
    return [*prompt[start:end], *output[max(start - behind, 0) : max(end - behind, 0)]]
