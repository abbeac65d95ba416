"""From slots to a batch that a backend samples: parameters by row, bans that hold now, and the draws' numbers.

A draw is decided by the sequence's seed and the position in its output alone, so neighbours, chunking and preemption
cannot change it. Knows nothing of logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagellm_core.core.plan import TokenSampling
from sagellm_protocol.backend import SamplingBatch

from .slots import Slots

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STEPS_AHEAD = 32
"""Steps whose draws' numbers are made at once: a dozen operations on few numbers cost the same for one step or many."""


def uniforms(seeds: Sequence[int], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Numbers in [0, 1), one a pair of 64-bit seed and output position.

    SplitMix64's finaliser (Steele, Lea & Flood 2014) over the hashed seed and a counter: hashing the seed first keeps
    streams of neighbouring seeds from being shifts of each other.
    """
    return _numbers(_hashed(seeds), positions)


def _hashed(seeds: Sequence[int]) -> NDArray[np.uint64]:
    return _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64))


def _numbers(hashed: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    bits = _mix(hashed + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    numbers: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def _ahead(hashed: NDArray[np.uint64], produced: Sequence[int]) -> list[list[float]]:
    """Numbers of the draws at output positions ``produced`` and of those after them, the last first."""
    later = np.arange(_STEPS_AHEAD - 1, -1, -1)[:, None]
    numbers: list[list[float]] = _numbers(hashed, np.asarray(produced) + later).tolist()
    return numbers


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


class SamplingBatches:
    """Makes the batch of each step; what the same slots asked for in the step before is not put together again."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._rows: Sequence[int] = ()
        self._turn = -1
        self._each: list[TokenSampling] = []
        self._asked = _no_rows()
        self._hashed: NDArray[np.uint64] | None = None
        self._ahead: list[list[float]] = []  # draws' numbers of the steps to come, the next one last
        self._next: list[int] = []  # the output positions that it is for
        self._penalised: list[bool] = []
        self._banning: list[int] = []

    def batch(self, rows: Sequence[int], drafts: Sequence[int] | None = None) -> SamplingBatch:
        """How the next token of each slot in ``rows`` is to be chosen.

        Args:
            rows: Slots; one several times, where its token behind each of several drafts is to be chosen.
            drafts: How many of its slot's drafts come before each row's token; ``None`` where none do.
        """
        slots = self._slots
        if self._turn != slots.turn or self._rows != rows:
            self._look(rows)
        changed: dict[str, Any] = {}
        if self._hashed is not None:
            produced = (slots.length[rows] - slots.prompt_len[rows]).tolist()
            if drafts is not None:
                changed["uniform"] = _numbers(self._hashed, np.add(produced, drafts)).tolist()
            else:
                if not self._ahead or produced != self._next:
                    self._ahead = _ahead(self._hashed, produced)
                changed["uniform"] = self._ahead.pop()
                self._next = [position + 1 for position in produced]
        if self._penalised:
            outputs = zip(rows, self._penalised, drafts or [0] * len(rows), strict=True)
            changed["output_tokens"] = [slots.output(slot, ahead) if asked else () for slot, asked, ahead in outputs]
        if self._banning:
            banned: list[Sequence[int]] = [()] * len(rows)
            for place in self._banning:
                banned[place] = _banned(slots, rows[place], self._each[place], drafts[place] if drafts else 0)
            changed["banned"] = banned
        return replace(self._asked, **changed) if changed else self._asked

    def _look(self, rows: Sequence[int]) -> None:
        """Gather what holds as long as the slots' sequences are the same."""
        slots = self._slots
        each = self._each = [slots.sampling(slot) for slot in rows]
        penalised = [_penalised(sampling) for sampling in each]
        self._rows, self._turn = list(rows), slots.turn
        self._penalised = penalised if any(penalised) else []
        self._banning = [place for place, one in enumerate(each) if one.bad_words or one.min_tokens]
        self._hashed = None if all(one.temperature == 0 for one in each) else _hashed([one.seed for one in each])
        self._ahead = []
        prompts = zip(rows, penalised, strict=True)
        self._asked = SamplingBatch(
            temperature=[sampling.temperature for sampling in each],
            top_k=[sampling.top_k for sampling in each],
            top_p=[sampling.top_p for sampling in each],
            min_p=[sampling.min_p for sampling in each],
            uniform=[0.0] * len(each),
            repetition_penalty=[sampling.repetition_penalty for sampling in each],
            presence_penalty=[sampling.presence_penalty for sampling in each],
            frequency_penalty=[sampling.frequency_penalty for sampling in each],
            prompt_tokens=[slots.prompt(slot) if penalised else () for slot, penalised in prompts],
            output_tokens=[()] * len(each),
            bias=[sampling.logit_bias for sampling in each],
            banned=[()] * len(each),
            allowed=[sampling.allowed for sampling in each],
            logprobs=[sampling.logprobs for sampling in each],
        )


def _no_rows() -> SamplingBatch:
    return SamplingBatch(**{field.name: () for field in fields(SamplingBatch)})


def may_produce(slots: Slots, slot: int, drafts: int = 0) -> bool:
    """Whether any token may be produced next in ``slot``: bans that hold then may leave none of those allowed.

    Args:
        slots: All of them.
        slot: Which.
        drafts: How many of its drafts come before.
    """
    sampling = slots.sampling(slot)
    if sampling.allowed is None:
        return True
    banned = _banned(slots, slot, sampling, drafts)
    return not banned or not set(sampling.allowed) <= set(banned)


def _penalised(sampling: TokenSampling) -> bool:
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def _banned(slots: Slots, slot: int, sampling: TokenSampling, drafts: int) -> Sequence[int]:
    if not sampling.bad_words and not sampling.min_tokens:
        return ()
    output = slots.output(slot, drafts)
    banned = list(sampling.end_ids) if len(output) < sampling.min_tokens else []
    for word in sampling.bad_words:
        so_far = len(word) - 1
        if so_far <= len(output) and tuple(output[len(output) - so_far :]) == word[:-1]:
            banned.append(word[-1])
    return banned
