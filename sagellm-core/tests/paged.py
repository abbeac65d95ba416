"""Runs a model over a paged cache by a schedule, and gathers the logits of every position it computed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagellm_core.models.base import Model
from sagellm_protocol.backend import AttentionBatch, Backend
from sagellm_protocol.devices import DType

BLOCK_SIZE = 4
NUM_BLOCKS = 256

Schedule = Sequence[Sequence[tuple[int, int]]]
"""For each step, the sequences it computes and how many tokens of each."""


@dataclass
class Paged:
    """A model with a cache whose blocks are dealt out in no order.

    Attributes:
        logits: Of each sequence, one row a position computed so far.
    """

    model: Model
    ops: Backend[Any]
    prompts: Sequence[Sequence[int]]
    seed: int = 0
    logits: list[list[NDArray[np.float32]]] = field(init=False)

    def __post_init__(self) -> None:
        self._groups = len(dict.fromkeys(self.model.kv_specs))
        self._cache = self.ops.allocate_kv(self.model.kv_specs, NUM_BLOCKS, BLOCK_SIZE, DType.FLOAT32)
        deck = random.Random(self.seed)
        self._free = [deck.sample(range(NUM_BLOCKS), NUM_BLOCKS) for _ in range(self._groups)]
        self._tables: list[list[list[int]]] = [[[] for _ in self.prompts] for _ in range(self._groups)]
        self.logits = [[] for _ in self.prompts]

    def run(self, schedule: Schedule) -> None:
        """Compute every step of ``schedule``."""
        for step in schedule:
            self._step(step)

    def _step(self, step: Sequence[tuple[int, int]]) -> None:
        ids: list[int] = []
        positions: list[int] = []
        contexts = []
        for sequence, count in step:
            done = len(self.logits[sequence])
            ids += self.prompts[sequence][done : done + count]
            positions += range(done, done + count)
            contexts.append(done + count)
            for group in range(self._groups):
                table = self._tables[group][sequence]
                while len(table) * BLOCK_SIZE < done + count:
                    table.append(self._free[group].pop())
        tables = [[self._tables[group][sequence] for sequence, _ in step] for group in range(self._groups)]
        batch = AttentionBatch([count for _, count in step], contexts, tables)
        hidden = self.model.forward(
            self.ops.from_host(ids, DType.INT32),
            self.ops.from_host(positions, DType.INT32),
            self._cache,
            self.ops.plan_attention(self._cache, batch),
        )
        rows = iter(np.asarray(self.ops.to_host(self.model.logits(hidden)), dtype=np.float32))
        for sequence, count in step:
            self.logits[sequence] += [next(rows) for _ in range(count)]
