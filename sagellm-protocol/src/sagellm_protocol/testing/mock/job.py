"""A request in flight: its prompt, its choices, what it holds, when it reached its stations.

Knows nothing of what else is in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from sagellm_protocol.blocks import BlockHash
from sagellm_protocol.events import EndEvent, StreamEvent, Usage
from sagellm_protocol.metrics import Metrics, Timestamps
from sagellm_protocol.requests import Request

from .choice import Choice


@dataclass
class Job:
    """State of one request.

    Attributes:
        request: What was asked.
        order: Its place in the queue: priority, then arrival.
        prompt: Its tokens.
        root: Hash before the prompt's first block.
        hashes: Of the prompt's full blocks.
        choices: One for each of ``n``.
        queued_s: When it was accepted.
        deadline_s: When it expires.
        pending: Tokens to compute before it may produce the next one.
        cached: Prompt tokens found in the prefix cache when it was first admitted.
        held: Named blocks of the prompt that it holds.
        unnamed: Blocks of the prompt that it holds and that are not computed yet.
        events: What its caller has yet to read.
        ended: Whether its terminal event has been put there, or nobody reads any more.
    """

    request: Request
    order: tuple[int, int]
    prompt: tuple[int, ...]
    root: BlockHash
    hashes: tuple[BlockHash, ...]
    choices: Sequence[Choice]
    queued_s: float
    deadline_s: float
    pending: int = 0
    cached: int | None = None
    held: list[BlockHash] = field(default_factory=list)
    unnamed: int = 0
    events: asyncio.Queue[StreamEvent] = field(default_factory=asyncio.Queue)
    ended: bool = False
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    longest_gap_s: float | None = None
    preempted_s: float | None = None
    preemptions: int = 0
    lost_s: float = 0.0

    @property
    def active(self) -> list[Choice]:
        """Choices that have not ended."""
        return [choice for choice in self.choices if choice.end is None]

    @property
    def produced(self) -> int:
        """Tokens produced over all choices."""
        return sum(len(choice.tokens) for choice in self.choices)

    def mark_scheduled(self, now: float) -> None:
        """Note that a step has taken it in, for the first time or again."""
        if self.scheduled_s is None:
            self.scheduled_s = now
        if self.preempted_s is not None:
            self.lost_s += now - self.preempted_s
            self.preempted_s = None

    def mark_token(self, now: float) -> None:
        """Note that a step has produced tokens for it."""
        if self.first_token_s is None:
            self.first_token_s = now
        if self.last_token_s is not None:
            self.longest_gap_s = max(self.longest_gap_s or 0.0, now - self.last_token_s)
        self.last_token_s = now

    def usage(self) -> Usage:
        """Tokens counted until now."""
        return Usage(prompt_tokens=len(self.prompt), completion_tokens=self.produced, cached_tokens=self.cached or 0)

    def end_event(self, now: float) -> EndEvent:
        """What closes it once every choice has ended."""
        longest = max(len(choice.tokens) for choice in self.choices)
        total = now - self.queued_s
        first, last = self.first_token_s, self.last_token_s
        return EndEvent(
            request_id=self.request.request_id,
            choices=tuple(choice.end for choice in self.choices if choice.end is not None),
            usage=self.usage(),
            metrics=Metrics(
                queue_ms=_ms(self.queued_s, self.scheduled_s),
                ttft_ms=_ms(self.queued_s, first),
                tbt_ms=None if self.longest_gap_s is None else 1000 * self.longest_gap_s,
                tpot_ms=1000 * (last - first) / (longest - 1)
                if first is not None and last is not None and longest > 1
                else None,
                e2e_ms=1000 * total,
                throughput_tps=self.produced / total if total > 0 else None,
                kv_used_tokens=len(self.prompt) + self.produced,
                prefix_hit_rate=(self.cached or 0) / len(self.prompt),
                evict_count=self.preemptions,
                evict_ms=1000 * self.lost_s,
            ),
            timestamps=Timestamps(queued=self.queued_s, scheduled=self.scheduled_s, first_token=first, finished=now),
        )


def _ms(start: float, end: float | None) -> float | None:
    return None if end is None else 1000 * (end - start)
