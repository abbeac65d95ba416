"""One engine on virtual time: continuous batching, chunked prefill, a prefix cache, preemption by recompute.

Steps of one shape are taken together, as a span whose length is known in closed form: an event is an arrival, the end
of a prompt or the end of an answer, never a step. Knows nothing of routing.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from sagellm_control_plane.observing import EngineWork

from .cache import BlockCache
from .engine_model import EngineModel
from .requests import SimRequest

Running = tuple[int, int, SimRequest, int]
"""Step at whose end it is done, number, the request, and the step at which its first token came."""


@dataclass
class Span:
    """Equal steps in a row that are under way."""

    began: float
    ends: float
    steps: int
    sequences: int
    """That decode in each."""
    prompt_tokens: int
    """Computed in each."""
    completing: list[SimRequest] = field(default_factory=list)
    """Whose prompts are whole at its end."""


@dataclass
class Happened:
    """What a span brought."""

    began: list[SimRequest] = field(default_factory=list)
    """Got their first token."""
    ended: list[SimRequest] = field(default_factory=list)
    """Got their last."""
    tokens: int = 0
    """Output tokens, of all."""


class SimEngine:
    """A queue, a batch and a cache.

    Args:
        model: What steps take, and the limits.
    """

    def __init__(self, model: EngineModel) -> None:
        self.model = model
        self.cache = BlockCache(model.cache_tokens)
        self.span: Span | None = None
        self.busy_s = 0.0
        self.preemptions = 0
        self.prompt_tokens = 0
        """Of prompts, those computed again after a preemption included."""
        self.hit_tokens = 0
        """Of those, found in the cache."""
        self._waiting: deque[SimRequest] = deque()
        self._running: list[Running] = []
        self._head: SimRequest | None = None
        self._left = 0
        """Tokens of the head's prompt still to compute."""
        self._steps = 0
        self._context = 0

    @property
    def sequences(self) -> int:
        """In any state here."""
        prompts = len(self.span.completing) if self.span is not None else 0
        return len(self._waiting) + len(self._running) + prompts + (self._head is not None)

    def work(self, output_tokens: int) -> EngineWork:
        """What it has done, as an engine would tell it."""
        return EngineWork(self.busy_s, self.prompt_tokens, output_tokens, self._steps)

    def running(self) -> list[tuple[SimRequest, int]]:
        """Requests that decode, with the tokens they have."""
        return [(entry[2], self._produced(entry)) for entry in self._running]

    def submit(self, request: SimRequest, now: float) -> bool:
        """Take a request in; whether the present span ends sooner for it.

        A step that is under way is finished first; a span of decode steps alone ends with it.
        """
        alone = not self._waiting
        self._waiting.append(request)
        span = self.span
        if span is None or span.prompt_tokens or span.steps == 1 or not alone:
            return False
        done = self.model.steps_within(now - span.began, span.sequences, self._context)
        if done + 1 >= span.steps:
            return False
        span.steps = done + 1
        span.ends = span.began + self.model.steps_s(span.steps, span.sequences, self._context)
        return True

    def finish(self) -> Happened:
        """Take in the span that has ended."""
        span, happened = self.span, Happened()
        assert span is not None
        self.span = None
        self.busy_s += span.ends - span.began
        self._steps += span.steps
        grown = span.sequences * span.steps
        self._context += grown
        self.cache.grow(grown)
        happened.tokens = grown
        while self._running and self._running[0][0] <= self._steps:
            self._end(heapq.heappop(self._running), happened)
        for request in span.completing:
            self._begin(request, span.ends, happened)
        return happened

    def plan(self, now: float) -> bool:
        """Begin the next span, if there is anything to do; whether there is."""
        assert self.span is None
        self._make_room()
        sequences = len(self._running)
        budget = max(1, self.model.token_budget - sequences)
        tokens, steps = 0, 1
        completing: list[SimRequest] = []
        while tokens < budget:
            if self._head is None and not self._admit(sequences + len(completing)):
                break
            if not tokens and self._left > budget:
                steps = self._most_steps((self._left - 1) // budget)
                self._left -= steps * budget
                tokens = budget
                break
            chunk = min(self._left, budget - tokens)
            tokens += chunk
            self._left -= chunk
            if self._left == 0:
                assert self._head is not None
                completing.append(self._head)
                self._head = None
        if not tokens:
            if not sequences:
                return False
            steps = self._most_steps(self._running[0][0] - self._steps)
        took = self.model.steps_s(steps, sequences, self._context, tokens)
        self.span = Span(now, now + took, steps, sequences, tokens, completing)
        return True

    def _most_steps(self, wanted: int) -> int:
        """As many steps as nothing else happens in: no answer ends, and the cache does not fill up."""
        if self._running:
            wanted = min(wanted, self._running[0][0] - self._steps, self.cache.free_tokens // len(self._running))
        return max(1, wanted)

    def _admit(self, sequences: int) -> bool:
        """Begin the next prompt, if there is one and it fits."""
        if not self._waiting or sequences >= self.model.max_num_seqs:
            return False
        request = self._waiting[0]
        tokens = request.prompt_tokens + request.produced
        if sequences and tokens + 1 > self.cache.free_tokens:
            return False
        self._waiting.popleft()
        blocks, size = request.block_hashes, request.block_size
        hit = min(self.cache.matched(blocks) * size, tokens - 1) if blocks else 0
        self.cache.take(blocks, size, tokens - len(blocks) * size)
        if not request.produced:
            request.cached = hit
            self.prompt_tokens += tokens
            self.hit_tokens += hit
        self._head, self._left = request, tokens - hit
        return True

    def _begin(self, request: SimRequest, now: float, happened: Happened) -> None:
        """Its prompt is computed: a token came of it."""
        happened.tokens += 1
        if request.first_at is None:
            request.first_at = now
            happened.began.append(request)
        left = request.output_tokens - request.produced - 1
        entry = (self._steps + left, request.number, request, self._steps)
        self._context += request.prompt_tokens + request.produced + 1
        if left:
            heapq.heappush(self._running, entry)
        else:
            self._end(entry, happened)

    def _end(self, entry: Running, happened: Happened) -> None:
        self._release(entry)
        happened.ended.append(entry[2])

    def _release(self, entry: Running) -> None:
        _, _, request, since = entry
        decoded = self._steps - since
        self._context -= request.prompt_tokens + request.produced + 1 + decoded
        private = request.prompt_tokens - len(request.block_hashes) * request.block_size + request.produced + decoded
        self.cache.give_back(request.block_hashes, request.block_size, private)

    def _produced(self, entry: Running) -> int:
        return entry[2].produced + 1 + self._steps - entry[3]

    def _make_room(self) -> None:
        """Put off the youngest until the rest can take a step; it is computed again later."""
        while len(self._running) > 1 and self.cache.free_tokens < len(self._running):
            youngest = max(self._running, key=lambda entry: entry[1])
            self._running.remove(youngest)
            heapq.heapify(self._running)
            produced = self._produced(youngest)
            self._release(youngest)
            youngest[2].produced = produced
            self._waiting.appendleft(youngest[2])
            self.preemptions += 1
