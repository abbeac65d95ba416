"""From slots to a batch that a backend samples: parameters by row, bans that hold now, and the draws' numbers.

A draw is decided by the sequence's seed and the position in its output alone, so neighbours, chunking and preemption
cannot change it. Knows nothing of logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sagellm_core.core.plan import TokenSampling
from sagellm_protocol.backend import SamplingBatch

from .slots import Slots

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds: Sequence[int], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Numbers in [0, 1), one a pair of 64-bit seed and output position.

    SplitMix64's finaliser (Steele, Lea & Flood 2014) over the hashed seed and a counter: hashing the seed first keeps
    streams of neighbouring seeds from being shifts of each other.
    """
    hashed = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64))
    bits = _mix(hashed + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    numbers: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def sampling_batch(slots: Slots, rows: Sequence[int]) -> SamplingBatch:
    """How the next token of each slot in ``rows`` is to be chosen."""
    each = [slots.sampling(slot) for slot in rows]
    produced = slots.length[rows] - slots.prompt_len[rows]
    penalised = [_penalised(sampling) for sampling in each]
    return SamplingBatch(
        temperature=[sampling.temperature for sampling in each],
        top_k=[sampling.top_k for sampling in each],
        top_p=[sampling.top_p for sampling in each],
        min_p=[sampling.min_p for sampling in each],
        uniform=uniforms([sampling.seed for sampling in each], produced).tolist(),
        repetition_penalty=[sampling.repetition_penalty for sampling in each],
        presence_penalty=[sampling.presence_penalty for sampling in each],
        frequency_penalty=[sampling.frequency_penalty for sampling in each],
        prompt_tokens=[slots.prompt(slot) if any_ else () for slot, any_ in zip(rows, penalised, strict=True)],
        output_tokens=[slots.output(slot) if any_ else () for slot, any_ in zip(rows, penalised, strict=True)],
        bias=[sampling.logit_bias for sampling in each],
        banned=[_banned(slots, slot, sampling) for slot, sampling in zip(rows, each, strict=True)],
        allowed=[sampling.allowed for sampling in each],
        logprobs=[sampling.logprobs for sampling in each],
    )


def may_produce(slots: Slots, slot: int) -> bool:
    """Whether any token may be produced next in ``slot``: bans that hold now may leave none of those allowed."""
    sampling = slots.sampling(slot)
    if sampling.allowed is None:
        return True
    banned = _banned(slots, slot, sampling)
    return not banned or not set(sampling.allowed) <= set(banned)


def _penalised(sampling: TokenSampling) -> bool:
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def _banned(slots: Slots, slot: int, sampling: TokenSampling) -> Sequence[int]:
    if not sampling.bad_words and not sampling.min_tokens:
        return ()
    output = slots.output(slot)
    banned = list(sampling.end_ids) if len(output) < sampling.min_tokens else []
    for word in sampling.bad_words:
        so_far = len(word) - 1
        if so_far <= len(output) and tuple(output[len(output) - so_far :]) == word[:-1]:
            banned.append(word[-1])
    return banned
