"""What the core is asked and what it answers: token ids, counts and durations.

Both cross process boundaries. Knows nothing of text, fronts or transports.
"""

from __future__ import annotations

import msgspec

from sagellm_core.adapters.base import AdapterRef

from .plan import Pooled, TokenLogprob, TokenSampling
from .sequence import Finish


class CoreRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A prompt to continue.

    Attributes:
        ticket: The asker's number for it, unused among those it has in flight.
        prompt: Token ids, at least one.
        seeds: 64 random bits for each continuation asked for; their number is the number of continuations.
        max_tokens: Most tokens of a continuation.
        sampling: How tokens are chosen; its seed is replaced by each of ``seeds``.
        priority: Lower is served sooner.
        cache_salt: Shares prefixes with requests of the same salt only.
        goes_on: The prompt is one that was counted before, and what was made of it.
        name: What log lines call it.
        adapter: What it goes through besides the model.
    """

    ticket: int
    prompt: list[int]
    seeds: list[int]
    max_tokens: int
    sampling: TokenSampling = TokenSampling()
    priority: int = 0
    cache_salt: str | None = None
    goes_on: bool = False
    name: str | None = None
    adapter: AdapterRef | None = None


class PoolRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Inputs to make a vector of each; to its asker each is one continuation of one request.

    Attributes:
        ticket: The asker's number for it, unused among those it has in flight.
        inputs: Token ids of each, at least one.
        pooled: How each becomes a vector.
        priority: Lower is served sooner.
        name: What log lines call it.
        adapter: What they go through besides the model.
    """

    ticket: int
    inputs: list[list[int]]
    pooled: list[Pooled]
    priority: int = 0
    name: str | None = None
    adapter: AdapterRef | None = None


class Ending(msgspec.Struct, frozen=True, array_like=True):
    """How a continuation ended, and what it cost.

    Attributes:
        finish: How.
        stop_token: The end token that was produced, if one was.
        message: What went wrong, for ``FAILED``, ``REFUSED`` and ``UNREADABLE``.
        preemptions: Times it lost its blocks.
        evicted_s: Seconds between losing its blocks and being scheduled again, summed.
        kv_tokens: Most tokens that its request held in the cache at once so far, shared ones counted once.
        kv_bytes: Bytes of the blocks these need.
        peak_mem_mb: Highest resident memory of the core's process so far, MiB.
        drafted: Draft tokens that were verified for it; ``None`` where none are drafted.
        accepted: Those that were accepted.
    """

    finish: Finish
    stop_token: int | None
    message: str | None
    preemptions: int
    evicted_s: float
    kv_tokens: int
    kv_bytes: int
    peak_mem_mb: float | None
    drafted: int | None = None
    accepted: int | None = None


class Beginning(msgspec.Struct, frozen=True, array_like=True):
    """Comes with a continuation's first output.

    Attributes:
        waited_s: Seconds from its arrival in the core to its first part of a step.
        cached_tokens: Prompt tokens found in the prefix cache.
    """

    waited_s: float
    cached_tokens: int


class CoreOutput(msgspec.Struct, array_like=True):
    """What one step brought for one continuation.

    Attributes:
        ticket: Of the request.
        index: Which continuation.
        token_ids: New tokens.
        logprobs: One for each of them, if asked for.
        prompt_logprobs: One for each prompt token from the second on, in pieces and in order, if asked for.
        beginning: With the first output.
        ending: With the last.
        vector: What an input was pooled to, float32 in this host's byte order; with the last.
    """

    ticket: int
    index: int
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    beginning: Beginning | None = None
    ending: Ending | None = None
    vector: bytes | None = None


class CoreStats(msgspec.Struct, frozen=True, array_like=True):
    """The core's load at one moment, and its counters since it started; fields as in the protocol's ``EngineStats``."""

    running: int
    waiting: int
    queued_prompt_tokens: int
    total_blocks: int
    free_blocks: int
    cached_blocks: int
    used_blocks: int
    leased_blocks: int
    kv_bytes: int
    peak_mem_mb: float | None
    steps: int
    prompt_tokens: int
    generation_tokens: int
    prefix_queried_tokens: int
    prefix_hit_tokens: int
    preemptions: int
    evicted_blocks: int
    host_hit_tokens: int | None = None
    disk_hit_tokens: int | None = None
    host_kv_bytes: int | None = None
    disk_kv_bytes: int | None = None
    offloaded_blocks: int | None = None
    loaded_blocks: int | None = None
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None
    adapters_in_memory: int | None = None
