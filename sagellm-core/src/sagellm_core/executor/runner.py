"""Runs plans on one model and one backend: applies a plan to the slots, computes its tokens, samples.

Knows nothing of scheduling, requests or text, nor of other ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from sagellm_core.core.plan import SlotResult, StepPlan, StepResult, TokenLogprob
from sagellm_core.grammar.base import Grammars
from sagellm_core.loading.pooling import PoolingKind
from sagellm_core.models.base import AdaptableModel, Model
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import SageLLMError

from .adapting import adapted_forward
from .base import CacheLayout
from .constraints import Constraints
from .drafting.base import Drafter
from .drafting.speculator import Speculator, reported
from .hidden import Hidden, Tokens
from .inputs import StepInputs, step_inputs
from .pooling import Pooler
from .sampling import SamplingBatches, may_produce
from .slots import Slots

logger = logging.getLogger(__name__)

_PROMPT_LOGPROB_ROWS = 256
"""Rows of logits held at a time for a prompt's log-probabilities: a vocabulary is wide."""
_NO_CHOICE = (
    "no token may be produced here: all allowed_token_ids are banned, by bad_words or because min_tokens holds back"
    " tokens that end the text; allow another token"
)


class Runner:
    """One model with its cache and its slots.

    Args:
        model: Loaded on ``ops``.
        ops: The backend.
        layout: Sizes of cache and slots.
        kv_dtype: Type the cache keeps.
        pooling: Which hidden states become a vector, where one is asked for.
        grammars: What sequences' output may have to follow.
        drafting: Who drafts tokens of the slots given, if plans have some verified.
    """

    def __init__(
        self,
        model: Model,
        ops: Backend[Any],
        layout: CacheLayout,
        kv_dtype: DType,
        pooling: PoolingKind | None = None,
        grammars: Grammars | None = None,
        drafting: Callable[[Slots, Constraints], Drafter] | None = None,
    ) -> None:
        self._model = model
        self._ops = ops
        self.cache = ops.allocate_kv(model.kv_specs, layout.num_blocks, layout.block_size, kv_dtype)
        self._slots = Slots(layout, groups=len(dict.fromkeys(model.kv_specs)))
        self._batches = SamplingBatches(self._slots)
        self._constraints = Constraints(self._slots, grammars)
        self._pooler = None if pooling is None else Pooler(ops, self._slots, pooling)
        self._speculator: Speculator | None = None
        if drafting is not None:
            drafter = drafting(self._slots, self._constraints)
            self._speculator = Speculator(drafter, model, ops, self._slots, self._constraints)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the cache."""
        return self.cache.nbytes

    def run(self, plan: StepPlan) -> StepResult:
        """Run one step to its end."""
        self._slots.apply(plan)
        self._constraints.apply(plan)
        if self._speculator is not None:
            self._speculator.apply(plan)
        if plan.copies:
            self._ops.copy_blocks(self.cache, plan.copies)
        if not plan.slots:
            return StepResult(plan.step, [])
        rows, settled = self._prepare(plan)
        drafted = bool(plan.drafts) and self._speculator is not None and self._speculator.propose(plan, rows)
        inputs = step_inputs(plan, self._slots)
        hidden = self._forward(plan, inputs)
        slots = [plan.slots[row] for row in rows]
        results = []
        if rows:
            choose = self._verify if drafted else self._sample
            results = choose(inputs, hidden, rows, slots)
        if settled:
            results = _merge([*settled, *results], {}, plan.slots)
        if self._slots.reporting:
            results = _merge(results, self._prompt_logprobs(plan, inputs, hidden), plan.slots)
        if self._pooler is not None:
            results = _merge([*results, *self._pooler.results(plan, inputs, hidden)], {}, plan.slots)
        return StepResult(plan.step, results)

    def _read(self, plan: StepPlan, inputs: StepInputs) -> Tokens | None:
        """The tokens whose hidden states something is made of; ``None`` for all."""
        if self._slots.reporting or not self._slots.pooled.keys().isdisjoint(plan.slots):
            return None
        if len(inputs.ids) == len(plan.slots) and all(plan.samples):
            return None
        sampled = [row for row, samples in enumerate(plan.samples) if samples]
        read = inputs.newest(sampled) if sampled else np.zeros(0, dtype=np.int64)
        return None if len(read) == len(inputs.ids) else read

    def _forward(self, plan: StepPlan, inputs: StepInputs) -> Hidden:
        read = self._read(plan, inputs)
        if self._slots.adapters:
            assert isinstance(self._model, AdaptableModel), "a plan names an adapter, and the model takes none"
            states = adapted_forward(plan, inputs, read, self._slots, self._model, self._ops, self._states)
        else:
            states = self._states(inputs, read)
        return Hidden(self._ops, states, read)

    def _states(self, inputs: StepInputs, read: Tokens | None) -> Any:
        ops = self._ops
        return self._model.forward(
            ops.from_host(inputs.ids.data, DType.INT32),
            ops.from_host(inputs.positions.data, DType.INT32),
            self.cache,
            ops.plan_attention(self.cache, inputs.attention),
            None if read is None else read.tolist(),
        )

    def _prepare(self, plan: StepPlan) -> tuple[list[int], list[SlotResult]]:
        """The rows that a token is to be drawn for, and what becomes of those that none can be drawn for."""
        pooled = self._slots.pooled
        rows = [row for row, samples in enumerate(plan.samples) if samples and plan.slots[row] not in pooled]
        stuck: list[int] = []
        if self._slots.restricted:
            stuck = [plan.slots[row] for row in rows if not may_produce(self._slots, plan.slots[row])]
            rows = [row for row in rows if plan.slots[row] not in stuck]
        settled = [SlotResult(slot, [], error=_NO_CHOICE) for slot in stuck]
        if self._constraints:
            ended = self._constraints.prepare([plan.slots[row] for row in rows])
            settled += ended.values()
            rows = [row for row in rows if plan.slots[row] not in ended]
        return rows, settled

    def _sample(self, inputs: StepInputs, hidden: Hidden, rows: list[int], slots: list[int]) -> list[SlotResult]:
        return self._draw(hidden.of(inputs.ends[rows] - inputs.drafted[rows] - 1), slots)

    def _verify(self, inputs: StepInputs, hidden: Hidden, rows: list[int], slots: list[int]) -> list[SlotResult]:
        """Tokens of slots some of which have drafts; where one cannot be drawn, as if there had been none."""
        assert self._speculator is not None
        try:
            verified = self._speculator.verify(hidden.of(inputs.newest(rows)), slots)
        except SageLLMError:
            self._speculator.give_up(slots)
            return self._sample(inputs, hidden, rows, slots)
        return [self._constraints.accept(result) for result in verified]

    def _draw(self, hidden: Any, slots: list[int]) -> list[SlotResult]:
        """A token for each slot; where the backend can draw none for one of them, that one fails alone.

        Args:
            hidden: A row for each slot, ``[R, E]``.
            slots: The slots, ``R`` of them.
        """
        try:
            batch = self._batches.batch(slots)
            if self._constraints:
                batch = replace(batch, mask=self._constraints.masks(slots))
            drawn = self._ops.sample(self._model.logits(hidden), batch)
        except SageLLMError as error:  # whose row it was is found by drawing for each by itself
            if len(slots) > 1:
                each = [self._draw(self._ops.take_rows(hidden, [row]), [slot]) for row, slot in enumerate(slots)]
                return [result for results in each for result in results]
            logger.exception("no token can be drawn for slot %d", slots[0])
            return [SlotResult(slots[0], [], error=f"no token can be drawn: {error}")]
        self._slots.append(slots, drawn.token_ids)
        results = [
            SlotResult(slot, [token], [] if logprob is None else [reported(logprob)])
            for slot, token, logprob in zip(slots, drawn.token_ids, drawn.logprobs, strict=True)
        ]
        return [self._constraints.accept(result) for result in results] if self._constraints else results

    def _prompt_logprobs(self, plan: StepPlan, inputs: StepInputs, hidden: Hidden) -> dict[int, list[TokenLogprob]]:
        found: dict[int, list[TokenLogprob]] = {}
        for row, slot in enumerate(plan.slots):
            top = self._slots.sampling(slot).prompt_logprobs
            if top is None or plan.num_computed[row] + 1 >= self._slots.prompt_len[slot]:
                continue
            first = plan.num_computed[row]
            targets = self._slots.prompt(slot)[first + 1 : first + 1 + plan.num_scheduled[row]]
            if len(targets):
                begin = int(inputs.ends[row]) - plan.num_scheduled[row]
                found[slot] = self._logprobs_of(hidden.whole, begin, np.asarray(targets).tolist(), top)
        return found

    def _logprobs_of(self, hidden: Any, begin: int, targets: list[int], top: int) -> list[TokenLogprob]:
        """Log-probabilities of ``targets``, the first of which follows row ``begin`` of ``hidden``."""
        found: list[TokenLogprob] = []
        for start in range(0, len(targets), _PROMPT_LOGPROB_ROWS):
            part = targets[start : start + _PROMPT_LOGPROB_ROWS]
            rows = range(begin + start, begin + start + len(part))
            logits = self._model.logits(self._ops.take_rows(hidden, rows))
            found.extend(map(reported, self._ops.logprobs_of(logits, part, top)))
        return found


def _merge(
    sampled: Sequence[SlotResult], prompts: dict[int, list[TokenLogprob]], order: Sequence[int]
) -> list[SlotResult]:
    """Results with prompts' log-probabilities, in ``order`` of slots."""
    found = {result.slot: result for result in sampled}
    for slot, logprobs in prompts.items():
        found[slot] = msgspec.structs.replace(found.get(slot, SlotResult(slot, [])), prompt_logprobs=logprobs)
    return [found[slot] for slot in order if slot in found]
