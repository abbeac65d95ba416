"""Drafts by a smaller model of the same vocabulary, with a cache of its own.

Speculative decoding (Leviathan et al. 2023; Chen et al. 2023). Drafts are drawn as the model's own tokens will be, with
the same parameters, bans, masks and numbers: where the two models agree on a distribution they draw the same token.

What it lacks of a slot's text it reads in pieces when the slot may first have drafts: after a prompt, a prefix hit, a
preemption. Its blocks are handed out slot by slot; a slot that it has none for has no drafts. Knows nothing of how
drafts are verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from sagellm_core.executor.base import CacheLayout
from sagellm_core.executor.constraints import Constraints
from sagellm_core.executor.sampling import SamplingBatches
from sagellm_core.executor.slots import Slots
from sagellm_core.models.base import Model
from sagellm_protocol.backend import AttentionBatch, Backend, KVSpec
from sagellm_protocol.devices import DType

from .base import AddDraft

_CATCH_UP = 512
"""Tokens of texts it reads in one step beside what it drafts, so that those who wait for the step wait little."""


class SlotBlocks:
    """Blocks of a pool by slot, each slot's in order of position.

    Args:
        layout: Sizes of the pool and of the tables.
    """

    def __init__(self, layout: CacheLayout) -> None:
        self._size = layout.block_size
        self._free = list(range(layout.num_blocks - 1, -1, -1))
        self._held = [0] * layout.max_num_seqs
        width = -(-layout.max_model_len // layout.block_size)
        self._tables = np.zeros((layout.max_num_seqs, width), dtype=np.int32)

    def reserve(self, slot: int, tokens: int) -> bool:
        """Give a slot blocks for its first ``tokens`` tokens; whether there were enough."""
        held, needed = self._held[slot], -(-tokens // self._size)
        if needed - held > len(self._free):
            return False
        while held < needed:
            self._tables[slot, held] = self._free.pop()
            held += 1
        self._held[slot] = held
        return True

    def release(self, slot: int) -> None:
        """Take all its blocks from a slot."""
        self._free.extend(self._tables[slot, : self._held[slot]].tolist())
        self._held[slot] = 0

    def tables(self, slots: Sequence[int], tokens: int) -> NDArray[np.int32]:
        """Tables of some slots, ``[S, M]``, with room for ``tokens`` tokens."""
        tables: NDArray[np.int32] = self._tables[slots, : -(-tokens // self._size)]
        return tables


class ModelDrafter:
    """A smaller model beside the runner's.

    Args:
        model: Loaded on ``ops``.
        longest: Positions it has.
        ops: The backend.
        slots: The runner's.
        constraints: The runner's.
        layout: Sizes of the runner's cache, and of its own.
        kv_dtype: Type its cache keeps.
    """

    def __init__(
        self,
        model: Model,
        longest: int,
        ops: Backend[Any],
        slots: Slots,
        constraints: Constraints,
        layout: CacheLayout,
        kv_dtype: DType,
    ) -> None:
        self._model = model
        self._longest = longest
        self._ops = ops
        self._slots = slots
        self._constraints = constraints
        self._groups = len(dict.fromkeys(model.kv_specs))
        self._cache = ops.allocate_kv(model.kv_specs, layout.num_blocks, layout.block_size, kv_dtype)
        self._blocks = SlotBlocks(layout)
        self._batches = SamplingBatches(slots)
        self._computed = [0] * layout.max_num_seqs

    def drop(self, slot: int) -> None:
        """Forget a slot's text, and take its blocks."""
        self._blocks.release(slot)
        self._computed[slot] = 0

    def propose(self, wanted: Mapping[int, int], add: AddDraft) -> None:
        """Read what is lacking of each text, and draft behind those that are read to their end."""
        reading, drafting = self._read(wanted)
        if not reading:
            return
        ends = np.cumsum(list(reading.values()))
        newest = [int(end) - 1 for slot, end in zip(reading, ends, strict=True) if slot in drafting]
        before = [self._computed[slot] for slot in reading]
        hidden = self._forward(list(reading), before, list(reading.values()), newest)
        for slot, count in reading.items():
            self._computed[slot] += count
        if newest:
            self._draft(hidden, {slot: wanted[slot] for slot in reading if slot in drafting}, add)

    def settle(self, slot: int) -> None:
        """What it computed of drafts that were rejected is computed again; the newest token never was."""
        self._computed[slot] = min(self._computed[slot], int(self._slots.length[slot]) - 1)

    def _read(self, wanted: Mapping[int, int]) -> tuple[dict[int, int], set[int]]:
        """How many tokens of which slots to read now, and which of those are read to their end by it."""
        reading: dict[int, int] = {}
        drafting: set[int] = set()
        budget = _CATCH_UP
        for slot, count in wanted.items():
            length, computed = int(self._slots.length[slot]), self._computed[slot]
            lacking = length - computed
            # One or two tokens are lacking where it drafted in the step before: no more than their share.
            now = lacking if lacking <= 2 else min(lacking, budget)
            whole = now == lacking
            if not now or length + count > self._longest:
                continue
            if not self._blocks.reserve(slot, computed + now + (count - 1 if whole else 0)):
                continue
            reading[slot] = now
            budget -= now if lacking > 2 else 0
            if whole:
                drafting.add(slot)
        return reading, drafting

    def _draft(self, hidden: Any, wanted: Mapping[int, int], add: AddDraft) -> None:
        """Draft token after token for all slots at once.

        Args:
            hidden: Of each slot's newest token, ``[S, E]``.
            wanted: Most drafts of each of these slots.
            add: Takes each.
        """
        slots = list(wanted)
        ahead = 0
        while True:
            batch = self._batches.batch(slots, [ahead] * len(slots))
            if self._constraints:
                batch = replace(batch, mask=self._constraints.masks(slots, [ahead] * len(slots)))
            batch = replace(batch, logprobs=[None] * len(slots))
            drawn = self._ops.sample(self._model.logits(hidden), batch).token_ids
            ahead += 1
            slots = [
                slot for slot, token in zip(slots, drawn, strict=True) if add(slot, token) and ahead < wanted[slot]
            ]
            if not slots:
                return
            before = [int(self._slots.length[slot]) + ahead - 1 for slot in slots]
            hidden = self._forward(slots, before, [1] * len(slots))
            for slot in slots:
                self._computed[slot] += 1

    def _forward(
        self, slots: Sequence[int], computed: Sequence[int], counts: Sequence[int], read: Sequence[int] | None = None
    ) -> Any:
        """Compute ``counts`` tokens of each slot behind those ``computed``.

        Returns:
            Hidden states of all of them, ``[T, E]``, or of those at the indices ``read``.
        """
        ends = np.cumsum(counts)
        row = np.repeat(slots, counts)  # [T]
        positions = np.arange(ends[-1]) - np.repeat(ends - np.add(counts, computed), counts)  # [T]
        context = [before + count for before, count in zip(computed, counts, strict=True)]
        # An array is a sequence in all but name.
        table = cast(Sequence[Sequence[int]], self._blocks.tables(slots, max(context)))
        ops = self._ops
        return self._model.forward(
            ops.from_host(self._slots.tokens[row, positions].data, DType.INT32),
            ops.from_host(positions.astype(np.int32).data, DType.INT32),
            self._cache,
            ops.plan_attention(self._cache, AttentionBatch(counts, context, [table] * self._groups)),
            read,
        )


@dataclass(frozen=True)
class ModelStage:
    """A :class:`ModelDrafter` to be.

    Attributes:
        model: Loaded on ``ops``.
        longest: Positions it has.
        ops: The backend.
    """

    model: Model
    longest: int
    ops: Backend[Any]

    @property
    def weight_bytes(self) -> int:
        """Bytes its weights occupy."""
        return self.model.weight_bytes

    @property
    def kv_specs(self) -> tuple[KVSpec, ...]:
        """What each of its layers keeps of a token."""
        return self.model.kv_specs

    def drafter(self, layout: CacheLayout, kv_dtype: DType, slots: Slots, constraints: Constraints) -> ModelDrafter:
        """Make its cache and begin."""
        return ModelDrafter(self.model, self.longest, self.ops, slots, constraints, layout, kv_dtype)
