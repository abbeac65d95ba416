"""What is done to logits before any is drawn: allowed tokens, masks, penalties, biases, banned tokens.

What no row asks for is found out once a batch. Knows nothing of how a token is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sagellm_protocol.backend import SamplingBatch
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .topvalues import Floats, Ints


def edits_any(batch: SamplingBatch) -> bool:
    """Whether any row asks for an edit."""
    rows = len(batch.temperature)
    return (
        any(batch.bias)
        or any(batch.banned)
        or batch.allowed.count(None) < rows
        or len(batch.mask) > 0
        or batch.repetition_penalty.count(1) < rows
        or batch.presence_penalty.count(0) < rows
        or batch.frequency_penalty.count(0) < rows
    )


def edited_rows(batch: SamplingBatch) -> list[int]:
    """Rows that ask for an edit, ascending."""
    if not edits_any(batch):
        return []
    return [
        row
        for row in range(len(batch.temperature))
        if batch.bias[row]
        or batch.banned[row]
        or batch.allowed[row] is not None
        or batch.repetition_penalty[row] != 1
        or batch.presence_penalty[row]
        or batch.frequency_penalty[row]
        or (batch.mask and batch.mask[row] is not None)
    ]


def edit_logits(logits: Iterable[Floats], batch: SamplingBatch, rows: Iterable[int]) -> None:
    """Edit the logits of some rows, each ``[V]`` float32, in place.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a token id outside the vocabulary, or a row left with no token at all.
    """
    for row, scores in zip(rows, logits, strict=True):
        allowed, banned = batch.allowed[row], batch.banned[row]
        if allowed is not None:
            _allow(scores, _ids(row, scores, allowed))
        mask = batch.mask[row] if batch.mask else None
        if mask is not None:
            _keep_masked(scores, mask)
        if batch.repetition_penalty[row] != 1:
            seen = np.concatenate((batch.prompt_tokens[row], batch.output_tokens[row]))
            _penalise_repetition(scores, _ids(row, scores, seen), batch.repetition_penalty[row])
        if batch.presence_penalty[row] or batch.frequency_penalty[row]:
            tokens, counts = np.unique(_ids(row, scores, batch.output_tokens[row]), return_counts=True)
            lowered = -batch.presence_penalty[row] - batch.frequency_penalty[row] * counts
            scores[tokens] += lowered.astype(np.float32)
        if batch.bias[row]:
            bias = batch.bias[row]
            # Token ids of a row are distinct: nothing is added twice to one place.
            scores[_ids(row, scores, bias)] += np.fromiter(bias.values(), np.float32, len(bias))
        if banned:
            scores[_ids(row, scores, banned)] = -math.inf
        if (banned or allowed is not None or mask is not None) and scores.max() == -math.inf:
            raise SageLLMError(ErrorCode.INVALID_REQUEST, f"row {row}: no token may be produced; allow at least one")


def _ids(row: int, scores: Floats, tokens: Sequence[int] | Any) -> Ints:
    """Token ids as an index, once they are known to be in the vocabulary."""
    ids = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens), dtype=np.int64)
    # As unsigned numbers, negative ones are too large as well.
    if len(ids) and ids.view(np.uint64).max() >= len(scores):
        bad = next(int(token) for token in ids if not 0 <= token < len(scores))
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"row {row}: token id {bad} is not in the vocabulary of {len(scores)}"
        )
    return ids


def _allow(scores: Floats, allowed: Ints) -> None:
    kept = scores[allowed]
    scores.fill(-math.inf)
    scores[allowed] = kept


def _keep_masked(scores: Floats, mask: Sequence[int]) -> None:
    bits = np.unpackbits(np.ascontiguousarray(mask, dtype="<i4").view(np.uint8), count=len(scores), bitorder="little")
    scores[bits == 0] = -math.inf


def _penalise_repetition(scores: Floats, seen: Ints, penalty: float) -> None:
    # A token that is there twice is written twice, with the same value.
    values = scores[seen]
    divisor = np.float32(penalty)
    scores[seen] = np.where(values > 0, values / divisor, values * divisor)
