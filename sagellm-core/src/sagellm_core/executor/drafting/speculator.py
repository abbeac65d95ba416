"""Verifying drafts: the model draws its token at each position, and drafts are kept as long as they are what it drew.

A step computes a sequence's newest token and its drafts together; from the logits behind each the model's own token is
drawn, with that position's number, penalties, bans and mask. The first that differs from the draft is itself the next
token. A draft is thus accepted with the probability that the model gives it, as in rejection sampling from a draft that
is certain of itself (Leviathan et al. 2023), and since numbers belong to positions the tokens are not only distributed
as without drafts: they are the same.

Knows nothing of who drafts or whether that pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sagellm_core.core.plan import SlotResult, StepPlan, TokenLogprob
from sagellm_core.executor.constraints import Constraints
from sagellm_core.executor.sampling import SamplingBatches, may_produce
from sagellm_core.executor.slots import Slots
from sagellm_core.models.base import Model
from sagellm_protocol.backend import Backend, RowLogprobs, Sampled

from .base import Drafter


class Speculator:
    """Has tokens drafted before a step's forward pass, and verifies them after it.

    Args:
        drafter: Who drafts.
        model: Who decides.
        ops: The backend.
        slots: The runner's.
        constraints: The runner's; prepared for every slot that may have drafts.
    """

    def __init__(
        self, drafter: Drafter, model: Model, ops: Backend[Any], slots: Slots, constraints: Constraints
    ) -> None:
        self._drafter = drafter
        self._model = model
        self._ops = ops
        self._slots = slots
        self._constraints = constraints
        self._batches = SamplingBatches(slots)

    def apply(self, plan: StepPlan) -> None:
        """Take in which slots a plan frees."""
        for slot in plan.dropped:
            self._drafter.drop(slot)

    def propose(self, plan: StepPlan, rows: Sequence[int]) -> bool:
        """Have tokens drafted for those of ``rows`` that may have some; whether any were."""
        wanted = {plan.slots[row]: plan.drafts[row] for row in rows if plan.drafts[row]}
        if wanted:
            self._drafter.propose(wanted, self._add)
        return bool(self._slots.drafted[list(wanted)].any())

    def verify(self, hidden: Any, slots: Sequence[int]) -> list[SlotResult]:
        """The tokens of each slot; of its drafts those that are its tokens.

        Args:
            hidden: Of each slot its newest token's row and those of its drafts, ``[R, E]``.
            slots: The slots.

        Raises:
            SageLLMError: No token can be drawn in some row.
        """
        counts = self._slots.drafted[slots].tolist()
        rows = [slot for slot, count in zip(slots, counts, strict=True) for _ in range(count + 1)]
        ahead = [place for count in counts for place in range(count + 1)]
        batch = self._batches.batch(rows, ahead)
        if self._constraints:
            batch = replace(batch, mask=self._constraints.masks(rows, ahead))
        drawn = self._ops.sample(self._model.logits(hidden), batch)
        self._constraints.go_back()
        results, start = [], 0
        for slot, count in zip(slots, counts, strict=True):
            results.append(self._settle(slot, count, drawn, start))
            start += count + 1
        return results

    def give_up(self, slots: Sequence[int]) -> None:
        """Take back all drafts unverified."""
        self._constraints.go_back()
        for slot in slots:
            self._slots.settle(slot, ())
            self._drafter.settle(slot)

    def _add(self, slot: int, token: int) -> bool:
        """Take a draft, unless the text would end with it: the row before it finds that out by itself."""
        slots = self._slots
        if token in slots.sampling(slot).end_ids:
            return False
        slots.draft(slot, token)
        if may_produce(slots, slot, int(slots.drafted[slot])) and self._constraints.follow(slot, token):
            return True
        slots.drafted[slot] -= 1
        return False

    def _settle(self, slot: int, count: int, drawn: Sampled, start: int) -> SlotResult:
        slots = self._slots
        first = int(slots.length[slot])
        drafts = slots.tokens[slot, first : first + count].tolist()
        accepted = 0
        while accepted < count and drafts[accepted] == drawn.token_ids[start + accepted]:
            accepted += 1
        end = start + accepted + 1
        tokens = list(drawn.token_ids[start:end])
        slots.settle(slot, tokens)
        self._drafter.settle(slot)
        logprobs = [reported(row) for row in drawn.logprobs[start:end] if row is not None]
        return SlotResult(slot, tokens, logprobs, drafted=count)


def reported(row: RowLogprobs) -> TokenLogprob:
    """A row's log-probabilities as plans report them."""
    return TokenLogprob(row.logprob, row.rank, list(row.top))
