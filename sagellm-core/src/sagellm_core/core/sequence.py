"""One sequence of tokens on its way through the core: what it holds, how far it is computed, how it ended.

Plain values that the scheduler and the block manager write; knows neither of them, and no text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from sagellm_core.adapters.base import AdapterRef
from sagellm_protocol.blocks import BlockHash, block_hash

from .plan import Pooled, TokenSampling
from .speculation import Drafting


class Finish(str, Enum):
    """How a sequence ended in the core."""

    STOP = "stop"
    """One of its end tokens was produced, or all that its grammar asks for; or it was to be read, and was."""
    LENGTH = "length"
    """It reached its limit, or alone could not be given another block."""
    CANCELLED = "cancelled"
    FAILED = "failed"
    REFUSED = "refused"
    """What its output was to follow is no grammar; the fault is the asker's."""
    UNREADABLE = "unreadable"
    """Its adapter could not be read."""


class Status(Enum):
    """Where a sequence is."""

    HELD = "held"
    """Its grammar is being compiled; the scheduler has not heard of it."""
    WAITING = "waiting"
    """Holds neither a slot nor blocks: not yet admitted, or preempted."""
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """One continuation of one prompt.

    Attributes:
        request: Whose it is; the core compares it and nothing else.
        index: Which of the request's continuations.
        key: Order of service: priority, then arrival. Unique.
        tokens: Prompt and output together.
        prompt_len: How many of ``tokens`` are prompt.
        sampling: How its tokens are chosen.
        limit: Most tokens of prompt and output together.
        leader: Sibling whose prompt blocks it will share; it waits until those are computed.
        num_computed: Tokens whose keys and values are cached. Written after a step.
        num_scheduled: Tokens of the step under way. Written by the scheduler, zero between steps.
        slot: Its place in the executor while it is running, else -1.
        tables: For each group of layers, its block ids in order of position; -1 where a block fell out of the window.
        published: Leading blocks of ``tables`` that have been offered to the prefix cache, or came from it.
        cached_tokens: Prompt tokens that came from the prefix cache at its first admission.
        preemptions: Times it lost its blocks.
        pooled: How it becomes a vector, if it is read and not continued.
        drafting: What drafts brought it, once it had some.
        adapter: What it goes through besides the model, if anything.
        read_whole: Every one of its tokens is to be computed, so that no prefix hit may skip some.
    """

    __slots__ = (
        "_hashes",
        "_root",
        "adapter",
        "cached_tokens",
        "drafting",
        "end_ids",
        "error",
        "finish",
        "index",
        "key",
        "leader",
        "limit",
        "num_computed",
        "num_scheduled",
        "pooled",
        "preemptions",
        "prompt_len",
        "published",
        "read_whole",
        "request",
        "sampling",
        "slot",
        "status",
        "stop_token",
        "tables",
        "times",
        "tokens",
    )

    def __init__(
        self,
        request: int,
        index: int,
        key: tuple[int, int],
        prompt: list[int],
        sampling: TokenSampling,
        limit: int,
        root: BlockHash,
        leader: Sequence | None = None,
        pooled: Pooled | None = None,
        read_whole: bool = False,
        adapter: AdapterRef | None = None,
    ) -> None:
        self.request = request
        self.index = index
        self.key = key
        self.tokens = list(prompt)
        self.prompt_len = len(prompt)
        self.sampling = sampling
        self.pooled = pooled
        self.read_whole = read_whole or sampling.prompt_logprobs is not None
        self.end_ids = frozenset(sampling.end_ids)
        self.limit = limit
        self.leader = leader
        self.adapter = adapter
        self.status = Status.WAITING
        self.num_computed = 0
        self.num_scheduled = 0
        self.slot = -1
        self.tables: list[list[int]] = []
        self.published = 0
        self.cached_tokens = 0
        self.preemptions = 0
        self.drafting: Drafting | None = None
        self.finish: Finish | None = None
        self.stop_token: int | None = None
        self.error: str | None = None
        self.times = Times()
        self._root = root
        self._hashes: list[BlockHash] = []

    @property
    def uncomputed(self) -> int:
        """Tokens that are known but neither cached nor being computed."""
        return len(self.tokens) - self.num_computed - self.num_scheduled

    @property
    def output(self) -> list[int]:
        """The tokens it has produced."""
        return self.tokens[self.prompt_len :]

    def block_hash(self, index: int, block_size: int) -> BlockHash:
        """Hash of its full block ``index``; computed once and in order."""
        hashes = self._hashes
        while len(hashes) <= index:
            start = len(hashes) * block_size
            parent = hashes[-1] if hashes else self._root
            hashes.append(block_hash(parent, self.tokens[start : start + block_size]))
        return hashes[index]

    def parent_hash(self, index: int) -> BlockHash | None:
        """Hash of the block before ``index``; ``None`` for the first. Known once :meth:`block_hash` of ``index`` is."""
        return self._hashes[index - 1] if index else None

    def append(self, token_ids: list[int]) -> int:
        """Take in what a step produced, up to and including the first token that ends the sequence.

        Returns:
            How many of them were taken.
        """
        for taken, token in enumerate(token_ids, start=1):
            self.tokens.append(token)
            if token in self.end_ids and len(self.tokens) - self.prompt_len >= self.sampling.min_tokens:
                self.finish, self.stop_token = Finish.STOP, token
                return taken
            if len(self.tokens) >= self.limit:
                self.finish = Finish.LENGTH
                return taken
        return len(token_ids)


@dataclass
class Times:
    """Monotonic seconds of the core, for what is reported when a sequence ends.

    Attributes:
        added: Arrived in the core.
        scheduled: First given a part of a step.
        preempted: Lost its blocks and has not been scheduled since.
        evicted_s: Spent without blocks after preemption, so far.
    """

    added: float = 0.0
    scheduled: float | None = None
    preempted: float | None = None
    evicted_s: float = field(default=0.0)
