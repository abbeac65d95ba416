"""An executor without a model: the next token is a hash of all tokens before it, read back through the block tables.

Every token that a plan computes is written into the block its table names; a sampled token is the hash of what the
tables then hold, over as much as the group's window shows. A wrong table, count, block that was given away too early or
prefix that was not the same therefore shows as a wrong token, or as a read of what was never written.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagellm_core.core.plan import SlotResult, StepPlan, StepResult, TokenLogprob, TokenSampling
from sagellm_core.executor.base import CacheLayout, ModelInfo
from sagellm_protocol import DeviceInfo, DType, ErrorCode, KVSpec, MemoryInfo, SageLLMError

VOCAB = 97
FULL = KVSpec(1, 2, 2)
EOS = 0


def next_token(tokens: list[int], windows: tuple[int | None, ...] = (None,), adapter: str | None = None) -> int:
    """What the fake model says after ``tokens``, through an adapter or without."""
    digest = hashlib.sha256()
    kept = [kept_of(token, adapter) for token in tokens]
    for window in windows:
        digest.update(repr(kept if window is None else kept[-window:]).encode())
    return int.from_bytes(digest.digest()[:4], "big") % VOCAB


def kept_of(token: int, adapter: str | None) -> int:
    """What is kept of a token: keys and values depend on the adapter."""
    if adapter is None:
        return token
    return token + (int.from_bytes(hashlib.sha256(adapter.encode()).digest()[:8], "big") << 16)


def alone(
    prompt: list[int],
    count: int,
    *,
    eos: int | None = None,
    windows: tuple[int | None, ...] = (None,),
    adapter: str | None = None,
) -> list[int]:
    """What a prompt is continued with when nothing else runs."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, windows, adapter))
        if tokens[-1] == eos:
            break
    return tokens[len(prompt) :]


@dataclass(frozen=True)
class Done:
    outcome: StepResult

    def result(self) -> StepResult:
        return self.outcome


class FakeExecutor:
    """A model of nothing.

    Args:
        specs: What each layer keeps.
        fail_on: A token that raises when it is computed as part of a prompt.
        pace: Tokens that come of a row that samples, in turn: as with drafts of which none or several are accepted.
        luck: Of the drafts that a plan lets a row have, how many are right, in turn.
        row_s, token_s: Seconds that a step takes on :attr:`clock` for being one, and for each token and draft.
        max_position_embeddings: Its context.
        step_s: Seconds a step takes.
    """

    def __init__(
        self,
        *specs: KVSpec,
        fail_on: int | None = None,
        pace: tuple[int, ...] = (1,),
        max_position_embeddings: int = 4096,
        step_s: float = 0.0,
        luck: tuple[int, ...] = (0,),
        row_s: float = 0.0,
        token_s: float = 0.0,
    ) -> None:
        self.specs = specs or (FULL,)
        self.fail_on = fail_on
        self.pace = pace
        self.step_s = step_s
        self.luck = luck
        self.row_s, self.token_s, self.now_s = row_s, token_s, 0.0
        self._lucky = 0
        self._paced = 0
        self._sampling: dict[int, tuple[TokenSampling, int]] = {}
        self.plans: list[StepPlan] = []
        self.stopped = False
        self.asleep = 0
        self.model_key = "fake"
        self._max_position_embeddings = max_position_embeddings
        self._windows = tuple(spec.window for spec in dict.fromkeys(self.specs))
        self._slots: dict[int, list[int]] = {}
        self._adapters: dict[int, str | None] = {}
        self.in_memory: set[str] = set()
        self._tables: dict[int, list[list[int]]] = {}
        self._cache: list[dict[tuple[int, int], int]] = [{} for _ in self._windows]
        self._layout: CacheLayout | None = None

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            architecture="FakeForCausalLM",
            model_key=self.model_key,
            vocab_size=VOCAB,
            max_position_embeddings=self._max_position_embeddings,
            kv_specs=self.specs,
            kv_dtype=DType.FLOAT32,
            dtype=DType.FLOAT32,
            quantization=None,
            eos_token_ids=(EOS,),
            weight_bytes=0,
            backend="fake",
            device=DeviceInfo(kind="cpu", name="fake"),
        )

    def memory(self) -> MemoryInfo:
        return MemoryInfo(total_bytes=1 << 30, free_bytes=1 << 30)

    def allocate(self, layout: CacheLayout) -> int:
        self._layout = layout
        return layout.num_blocks * layout.block_size * 16 * len(self.specs)

    kv_layout = "fake-1"

    def export_blocks(self, blocks: list[int]) -> bytes:
        assert self._layout is not None
        size = self._layout.block_size
        return b"".join(
            self._cache[0][block, offset].to_bytes(16, "little") for block in blocks for offset in range(size)
        )

    def import_blocks(self, blocks: list[int], data: Any) -> None:
        assert self._layout is not None
        size = self._layout.block_size
        assert len(data) == 16 * size * len(blocks)
        for place in range(size * len(blocks)):
            block, offset = divmod(place, size)
            value = int.from_bytes(data[16 * place : 16 * place + 16], "little")
            self._cache[0][blocks[block], offset] = value

    def run(self, plan: StepPlan) -> Done:
        assert self._layout is not None
        assert not self.asleep
        assert plan.step == len(self.plans)
        self.plans.append(plan)
        for slot in plan.dropped:
            self._slots.pop(slot, None)
            self._tables.pop(slot, None)
        for new in plan.added:
            assert new.slot not in self._slots, "the slot is taken"
            self._sampling[new.slot] = new.sampling, len(new.prompt)
            self._slots[new.slot] = [*new.prompt, *new.output]
            self._adapters[new.slot] = new.adapter
            self._tables[new.slot] = [[] for _ in self._windows]
        for blocks in plan.blocks:
            for table, ids in zip(self._tables[blocks.slot], blocks.groups, strict=True):
                table.extend(ids)
        keys = [self._adapters[slot] or "" for slot in plan.slots]
        assert keys == sorted(keys), "rows of an adapter are not side by side"
        assert self.in_memory.issuperset(filter(None, keys)), "an adapter runs that is not in memory"
        time.sleep(self.step_s)
        self.now_s += self.row_s + self.token_s * (sum(plan.num_scheduled) + sum(plan.drafts))
        return Done(StepResult(plan.step, [produced for row in self._rows(plan) if (produced := self._row(*row))]))

    def sleep(self, level: int) -> None:
        self.asleep = level
        self._forget()

    def wake(self) -> None:
        self.asleep = 0

    def reload(self, path: Path) -> None:
        self.asleep = 0
        if path.name == "other-shape":
            raise SageLLMError(ErrorCode.INVALID_REQUEST, "of another shape", "model")
        self.model_key = path.name
        self._forget()

    def _forget(self) -> None:
        self._slots.clear()
        self._tables.clear()
        self._cache = [{} for _ in self._windows]

    def stop(self) -> None:
        self.stopped = True

    def clock(self) -> float:
        """Seconds that steps have taken."""
        return self.now_s

    @staticmethod
    def _rows(plan: StepPlan) -> Any:
        assert len(set(plan.slots)) == len(plan.slots), "a slot has two rows"
        drafts = plan.drafts or [0] * len(plan.slots)
        return zip(plan.slots, plan.num_computed, plan.num_scheduled, plan.samples, drafts, strict=True)

    def _row(self, slot: int, computed: int, scheduled: int, samples: bool, drafts: int) -> SlotResult | None:
        tokens = self._slots[slot]
        assert scheduled > 0
        assert computed + scheduled <= len(tokens), "a token is computed before it is known"
        assert samples == (computed + scheduled == len(tokens))
        for position in range(computed, computed + scheduled):
            if tokens[position] == self.fail_on and position < self._sampling[slot][1]:
                raise RuntimeError(f"cannot compute token {self.fail_on}")
            for group in range(len(self._windows)):
                place = self._place(slot, group, position)
                self._cache[group][place] = kept_of(tokens[position], self._adapters[slot])
        if not samples:
            assert not drafts, "drafts behind a token that is no sequence's last"
            return None
        seen = [self._read(slot, group, window, computed + scheduled) for group, window in enumerate(self._windows)]
        digest = hashlib.sha256()
        for visible in seen:
            digest.update(repr(visible).encode())
        wanted = self.pace[self._paced % len(self.pace)]
        self._paced += 1
        if not wanted:
            return None
        produced = [int.from_bytes(digest.digest()[:4], "big") % VOCAB]
        while len(produced) < wanted:
            produced.append(next_token([*tokens, *produced], self._windows, self._adapters[slot]))
        sampling, prompt_len = self._sampling[slot]
        while len(tokens) - prompt_len < sampling.min_tokens and produced[0] in sampling.end_ids:
            produced = [(produced[0] + 1) % VOCAB]
        if drafts:
            produced.extend(self._verify(slot, [*tokens, *produced], drafts, sampling))
        tokens.extend(produced)
        logprobs = [] if sampling.logprobs is None else [_logprob(token, sampling.logprobs) for token in produced]
        return SlotResult(slot, produced, logprobs, drafted=drafts)

    def _verify(self, slot: int, tokens: list[int], drafts: int, sampling: TokenSampling) -> list[int]:
        """Compute drafts behind ``tokens`` but the last, which is the first draft or what comes in its place.

        Returns:
            What comes behind it: right drafts, and the token behind those.
        """
        right = self.luck[self._lucky % len(self.luck)]
        self._lucky += 1
        further: list[int] = []
        for place in range(drafts):
            right_one = [*tokens, *further][-1]
            accepted = place < right and place == len(further) and right_one not in sampling.end_ids
            for group in range(len(self._windows)):
                # A wrong draft is computed as well, and must never be read.
                self._cache[group][self._place(slot, group, len(tokens) - 1 + place)] = (
                    kept_of(right_one, self._adapters[slot]) if accepted else -1
                )
            if accepted:
                further.append(next_token([*tokens, *further], self._windows, self._adapters[slot]))
        return further

    def _place(self, slot: int, group: int, position: int) -> tuple[int, int]:
        assert self._layout is not None
        block, offset = divmod(position, self._layout.block_size)
        block_id = self._tables[slot][group][block]
        assert 0 <= block_id < self._layout.num_blocks
        return block_id, offset

    def _read(self, slot: int, group: int, window: int | None, length: int) -> list[int]:
        start = 0 if window is None else max(0, length - window)
        return [self._cache[group][self._place(slot, group, position)] for position in range(start, length)]


def _logprob(token: int, top: int) -> TokenLogprob:
    likeliest = [(token + other) % VOCAB for other in range(top)]
    return TokenLogprob(-0.5, 1, [(other, -0.5 - rank) for rank, other in enumerate(likeliest)])
