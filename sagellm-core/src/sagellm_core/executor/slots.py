"""State that outlives a step: each slot's tokens, sampling parameters and block tables, changed by what plans say.

Knows nothing of models, devices or scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from sagellm_core.core.plan import NewBlocks, NewSequence, Pooled, StepPlan, TokenSampling

from .base import CacheLayout


class Slots:
    """The running sequences, one a slot.

    Args:
        layout: How many slots, and how long a sequence may grow.
        groups: Groups of layers with equal KV specs.

    Attributes:
        tokens: Prompt and output of each slot, ``[max_num_seqs, max_model_len + 1]`` int32: the last that a
            sequence may have is never computed.
        prompt_len: Prompt tokens, ``[max_num_seqs]`` int64.
        length: Prompt and output tokens, ``[max_num_seqs]`` int64; 0 where a slot is free.
        drafted: Draft tokens behind those in ``tokens``, ``[max_num_seqs]`` int64; none between steps.
        restricted: Slots whose tokens are among some that are allowed.
        reporting: Slots that report log-probabilities of their prompt.
        adapters: Key of the adapter of each slot that has one.
        pooled: How each slot that is read and not continued becomes a vector.
        turn: Counts up whenever a slot is taken or freed; what was derived of slots' parameters holds until then.
    """

    def __init__(self, layout: CacheLayout, groups: int) -> None:
        slots, longest = layout.max_num_seqs, layout.max_model_len
        self.tokens = np.zeros((slots, longest + 1), dtype=np.int32)
        self.prompt_len = np.zeros(slots, dtype=np.int64)
        self.length = np.zeros(slots, dtype=np.int64)
        self.drafted = np.zeros(slots, dtype=np.int64)
        self.restricted: set[int] = set()
        self.reporting: set[int] = set()
        self.adapters: dict[int, str] = {}
        self.pooled: dict[int, Pooled] = {}
        self.turn = 0
        self._sampling: list[TokenSampling | None] = [None] * slots
        self._block_size = layout.block_size
        self._tables = np.zeros((groups, slots, -(-longest // layout.block_size)), dtype=np.int32)
        self._table_len = np.zeros((groups, slots), dtype=np.int64)

    def apply(self, plan: StepPlan) -> None:
        """Take in what a plan changes: drop, add, extend."""
        for slot in plan.dropped:
            self.drop(slot)
        for new in plan.added:
            self.add(new)
        for blocks in plan.blocks:
            self.extend(blocks)

    def add(self, new: NewSequence) -> None:
        """Let a sequence take its slot."""
        slot, prompt, output = new.slot, len(new.prompt), len(new.output)
        assert not self.length[slot], f"slot {slot} is taken"
        self.tokens[slot, :prompt] = new.prompt
        self.tokens[slot, prompt : prompt + output] = new.output
        self.prompt_len[slot] = prompt
        self.length[slot] = prompt + output
        self._sampling[slot] = new.sampling
        if new.sampling.allowed is not None:
            self.restricted.add(slot)
        if new.sampling.prompt_logprobs is not None:
            self.reporting.add(slot)
        if new.adapter is not None:
            self.adapters[new.slot] = new.adapter
        if new.pooled is not None:
            self.pooled[slot] = new.pooled
        self.turn += 1

    def drop(self, slot: int) -> None:
        """Free a slot. One that is free stays so: the drops of a step that failed half-way come again."""
        self.length[slot] = self.drafted[slot] = 0
        self._sampling[slot] = None
        self._table_len[:, slot] = 0
        self.restricted.discard(slot)
        self.reporting.discard(slot)
        self.adapters.pop(slot, None)
        self.pooled.pop(slot, None)
        self.turn += 1

    def extend(self, blocks: NewBlocks) -> None:
        """Append blocks to a slot's tables."""
        for group, ids in enumerate(blocks.groups):
            start = self._table_len[group, blocks.slot]
            self._tables[group, blocks.slot, start : start + len(ids)] = ids
            self._table_len[group, blocks.slot] = start + len(ids)

    def append(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """Add a token to the output of each of some slots."""
        at = self.length[slots]
        self.tokens[slots, at] = tokens
        self.length[slots] = at + 1

    def draft(self, slot: int, token: int) -> None:
        """Put a draft token behind a slot's tokens and the drafts before it."""
        self.tokens[slot, self.length[slot] + self.drafted[slot]] = token
        self.drafted[slot] += 1

    def settle(self, slot: int, tokens: Sequence[int]) -> None:
        """Add tokens to a slot's output in place of its drafts."""
        at = self.length[slot]
        self.tokens[slot, at : at + len(tokens)] = tokens
        self.length[slot] = at + len(tokens)
        self.drafted[slot] = 0

    def sampling(self, slot: int) -> TokenSampling:
        """How a slot's tokens are chosen."""
        sampling = self._sampling[slot]
        assert sampling is not None, f"slot {slot} is free"
        return sampling

    def prompt(self, slot: int) -> Sequence[int]:
        """A slot's prompt; a view."""
        # An array is a sequence in all but name, and backends convert it many times faster than a list.
        return cast(Sequence[int], self.tokens[slot, : self.prompt_len[slot]])

    def output(self, slot: int, drafts: int = 0) -> Sequence[int]:
        """What a slot has produced, with this many of its drafts; a view."""
        return cast(Sequence[int], self.tokens[slot, self.prompt_len[slot] : self.length[slot] + drafts])

    def tables(self, slots: Sequence[int], tokens: int) -> list[Sequence[Sequence[int]]]:
        """Block tables of some slots, by group: an array each, ``[S, M]`` int32, with room for ``tokens`` tokens."""
        width = -(-tokens // self._block_size)
        return [cast(Sequence[Sequence[int]], table[slots, :width]) for table in self._tables]
