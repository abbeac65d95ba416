"""One request in flight in the front: its choices, its events, its figures.

Decides which events what happened makes; whoever holds it does what it asks of the core. Knows no transport.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from sagellm_core.core.plan import TokenLogprob as CoreLogprob
from sagellm_core.core.request import Beginning, CoreOutput, Ending
from sagellm_core.core.sequence import Finish
from sagellm_core.tokenizer import Tokenizer
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.events import DeltaEvent, EndEvent, ErrorEvent, PositionLogprobs, StartEvent, StreamEvent, Usage
from sagellm_protocol.interfaces import RenderedPrompt, RequestEnding
from sagellm_protocol.metrics import Metrics, Timestamps
from sagellm_protocol.requests import Request

from .choice import Choice, position_logprobs
from .constraint import Constraint
from .form import Parsing


class Job:
    """A request that was sent to the core.

    Args:
        request: As asked.
        prompt: As rendered.
        tokenizer: The model's.
        ticket: The core's number for it.
        queued_s: When it was accepted; monotonic seconds.
        parsing: How calls and reasoning are told from its answer, where there may be any.
        constraint: What its output must follow; until that is compiled, the request may yet be refused.

    Attributes:
        outcome: How it ended, once it has; nothing changes it after.
        expiry: The timer of its deadline.
    """

    def __init__(
        self,
        request: Request,
        prompt: RenderedPrompt,
        tokenizer: Tokenizer,
        ticket: int,
        queued_s: float,
        parsing: Parsing | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self.request = request
        self.ticket = ticket
        self.outcome: RequestEnding | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self._prompt = prompt
        self._reasons = parsing is not None and parsing.reasons
        self._tokenizer = tokenizer
        self._queued_s = queued_s
        self._sent_s = time.monotonic()
        self._finished_s: float | None = None
        self._beginning: Beginning | None = None
        self._prompt_logprobs: list[CoreLogprob] = []
        self._started = False
        self._constraint = constraint
        self._choices = [
            Choice(request.request_id, index, request.sampling, tokenizer, prompt.token_ids, parsing)
            for index in range(request.sampling.n)
        ]
        self._events: deque[StreamEvent] = deque()
        self._arrived = asyncio.Event()
        if request.sampling.prompt_logprobs is None and constraint is None:
            self._start()

    async def next_events(self) -> Sequence[StreamEvent]:
        """What has happened since the last call; waits until something has."""
        await self._arrived.wait()
        self._arrived.clear()
        events = tuple(self._events)
        self._events.clear()
        return events

    def take(self, output: CoreOutput) -> bool:
        """Take in what one step brought for one choice.

        Returns:
            Whether the core shall stop working on that choice: what was wanted of it is there.
        """
        choice = self._choices[output.index]
        if output.ending is not None and output.ending.finish is Finish.FAILED:
            message = output.ending.message or "the engine core failed this request"
            self.fail(SageLLMError(ErrorCode.ENGINE_FAILED, message))
            return False
        if output.ending is not None and output.ending.finish is Finish.UNREADABLE:
            message = output.ending.message or "its adapter cannot be read"
            self.fail(SageLLMError(ErrorCode.INVALID_REQUEST, message, "adapter"))
            return False
        if output.ending is not None and output.ending.finish is Finish.REFUSED:
            self.fail(self._refusal(output.ending.message or "it cannot be compiled"))
            return False
        if output.beginning is not None and self._beginning is None:
            self._beginning = output.beginning
        self._prompt_logprobs.extend(output.prompt_logprobs)
        if not self._started:
            if not output.token_ids and output.ending is None:
                return False  # a part of the prompt
            self._start()
        had_enough = choice.enough
        delta = choice.take(output.token_ids, output.logprobs, output.ending, time.monotonic())
        if delta is not None:
            self._put(delta)
        if output.ending is not None and all(other.ending is not None for other in self._choices):
            self._end()
        return choice.enough and not had_enough and choice.ending is None

    def fail(self, error: SageLLMError) -> None:
        """End it with an error, unless it has ended."""
        if self.outcome is None:
            self._close(RequestEnding.of(error.code))
            self._put(ErrorEvent(request_id=self.request.request_id, error=error.info(), usage=self.usage()))

    def _refusal(self, reason: str) -> SageLLMError:
        param = None if self._constraint is None else self._constraint.param
        return SageLLMError(ErrorCode.INVALID_REQUEST, f"{param} cannot be followed: {reason}", param)

    def abandon(self) -> None:
        """End it without an event: nobody listens any more."""
        if self.outcome is None:
            self._close(RequestEnding.CANCELLED)

    def _close(self, outcome: RequestEnding) -> None:
        self.outcome = outcome
        self._finished_s = time.monotonic()
        if self.expiry is not None:
            self.expiry.cancel()

    def _put(self, event: StreamEvent) -> None:
        self._events.append(event)
        self._arrived.set()

    def _start(self) -> None:
        self._started = True
        request, prompt = self.request, self._prompt
        self._put(
            StartEvent(
                request_id=request.request_id,
                prompt_tokens=len(prompt.token_ids),
                prompt_logprobs=self._reported_prompt_logprobs(),
                prompt_token_ids=prompt.token_ids if request.return_token_ids else None,
                first_token=None
                if request.sampling.prompt_logprobs is None
                else self._tokenizer.token_bytes(prompt.token_ids[0]).decode(errors="replace"),
            )
        )
        if request.echo:
            text = prompt.text if prompt.text is not None else self._tokenizer.decode(prompt.token_ids)
            for choice in self._choices:
                self._put(DeltaEvent(request_id=request.request_id, index=choice.index, text=text))

    def _reported_prompt_logprobs(self) -> tuple[PositionLogprobs | None, ...] | None:
        if self.request.sampling.prompt_logprobs is None:
            return None
        # The first token follows nothing.
        known = zip(self._prompt.token_ids[1:], self._prompt_logprobs, strict=False)
        return (None, *(position_logprobs(self._tokenizer, token_id, logprob) for token_id, logprob in known))

    def _end(self) -> None:
        if self.outcome is not None:
            return
        self._close(RequestEnding.COMPLETED)
        assert self._finished_s is not None
        self._put(
            EndEvent(
                request_id=self.request.request_id,
                choices=tuple(choice.end() for choice in self._choices),
                usage=self.usage(),
                metrics=self._metrics(self._finished_s),
                timestamps=self.times(),
            )
        )

    def times(self) -> Timestamps:
        """When it reached its stations, as far as it has."""
        return Timestamps(
            queued=self._queued_s,
            scheduled=self._scheduled_s,
            first_token=self._first_token_s,
            finished=self._finished_s,
        )

    def finish_reasons(self) -> tuple[str, ...]:
        """Of its choices, once it is completed."""
        return tuple(choice.end().finish_reason.value for choice in self._choices)

    @property
    def _scheduled_s(self) -> float | None:
        # The core's clock is its own: only the time that it measured is used.
        return None if self._beginning is None else self._sent_s + self._beginning.waited_s

    @property
    def _first_token_s(self) -> float | None:
        return min((choice.first_s for choice in self._choices if choice.first_s is not None), default=None)

    def usage(self) -> Usage:
        """Tokens counted until now."""
        return Usage(
            prompt_tokens=len(self._prompt.token_ids),
            completion_tokens=sum(choice.num_tokens for choice in self._choices),
            cached_tokens=self._beginning.cached_tokens if self._beginning is not None else 0,
            reasoning_tokens=sum(choice.num_reasoning for choice in self._choices) if self._reasons else None,
        )

    def _metrics(self, finished_s: float) -> Metrics:
        usage = self.usage()
        endings = [choice.ending for choice in self._choices if choice.ending is not None]
        timed = [
            (choice.last_s - choice.first_s, choice.num_tokens - 1)
            for choice in self._choices
            # Tokens that came all at once say nothing of the time between them.
            if choice.first_s is not None and choice.last_s is not None and choice.last_s > choice.first_s
        ]
        after_first = sum(tokens for _, tokens in timed)
        took_s = finished_s - self._queued_s
        first_s, scheduled_s = self._first_token_s, self._scheduled_s
        return Metrics(
            queue_ms=None if scheduled_s is None else (scheduled_s - self._queued_s) * 1e3,
            ttft_ms=None if first_s is None else (first_s - self._queued_s) * 1e3,
            tbt_ms=max(choice.longest_gap_s for choice in self._choices) * 1e3 if after_first else None,
            tpot_ms=sum(seconds for seconds, _ in timed) * 1e3 / after_first if after_first else None,
            e2e_ms=took_s * 1e3,
            throughput_tps=usage.completion_tokens / took_s if took_s > 0 else None,
            peak_mem_mb=endings[-1].peak_mem_mb,
            kv_used_tokens=max(ending.kv_tokens for ending in endings),
            kv_used_bytes=max(ending.kv_bytes for ending in endings),
            prefix_hit_rate=usage.cached_tokens / usage.prompt_tokens,
            evict_count=sum(ending.preemptions for ending in endings),
            evict_ms=sum(ending.evicted_s for ending in endings) * 1e3,
            spec_accept_rate=_accept_rate(endings),
            error_rate=0.0,
        )


def _accept_rate(endings: Sequence[Ending]) -> float | None:
    """Share of a request's draft tokens that were accepted; ``None`` where there were none."""
    drafted = sum(ending.drafted or 0 for ending in endings)
    return sum(ending.accepted or 0 for ending in endings) / drafted if drafted else None
