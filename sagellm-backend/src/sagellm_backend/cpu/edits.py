"""What is done to logits before any is drawn: allowed tokens, penalties, biases, banned tokens.

All rows' edits of one kind become one scattered write. Knows nothing of how a token is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sagellm_protocol.backend import SamplingBatch
from sagellm_protocol.errors import ErrorCode, SageLLMError

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


def edit_logits(logits: torch.Tensor, batch: SamplingBatch) -> None:
    """Edit ``[R, V]`` float32 in place; rows without edits cost nothing.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for a token id outside the vocabulary, or a row left with no token at all.
    """
    restricted = _allow(logits, batch.allowed)
    _penalise_repetition(logits, batch)
    _penalise_output(logits, batch)
    _add_bias(logits, batch)
    restricted += _ban(logits, batch.banned)
    for row in restricted:
        if logits[row].max() == -math.inf:
            raise SageLLMError(ErrorCode.INVALID_REQUEST, f"row {row}: no token may be produced; allow at least one")


class _Scatter:
    """Values for single logits of several rows, gathered for one write."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._places: list[Ints] = []
        self._values: list[Floats] = []

    def add(self, row: int, tokens: Ints, values: Floats) -> None:
        if len(tokens) == 0:
            return
        if tokens.min() < 0 or tokens.max() >= self._vocabulary:
            bad = int(tokens.max() if tokens.max() >= self._vocabulary else tokens.min())
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST, f"row {row}: token id {bad} is not in the vocabulary of {self._vocabulary}"
            )
        self._places.append(tokens + row * self._vocabulary)
        self._values.append(values)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Places in the flattened logits, and the values; ``None`` when there are none."""
        if not self._places:
            return None
        return torch.from_numpy(np.concatenate(self._places)), torch.from_numpy(np.concatenate(self._values))


def _ids(tokens: Sequence[int]) -> Ints:
    return np.asarray(tokens, dtype=np.int64)


def _full(tokens: Ints, value: float) -> Floats:
    return np.full(len(tokens), value, dtype=np.float32)


def _allow(logits: torch.Tensor, allowed: Sequence[Sequence[int] | None]) -> list[int]:
    rows = [row for row, tokens in enumerate(allowed) if tokens is not None]
    if not rows:
        return rows
    scatter = _Scatter(logits.shape[1])
    for row in rows:
        tokens = _ids(allowed[row] or ())
        scatter.add(row, tokens, _full(tokens, 0.0))
    found = scatter.tensors()
    flat = logits.view(-1)
    kept = None if found is None else flat[found[0]]
    logits.index_fill_(0, torch.tensor(rows), -math.inf)
    if found is not None and kept is not None:
        flat[found[0]] = kept
    return rows


def _penalise_repetition(logits: torch.Tensor, batch: SamplingBatch) -> None:
    scatter = _Scatter(logits.shape[1])
    for row, penalty in enumerate(batch.repetition_penalty):
        if penalty != 1:
            tokens = np.unique(np.concatenate((_ids(batch.prompt_tokens[row]), _ids(batch.output_tokens[row]))))
            scatter.add(row, tokens, _full(tokens, penalty))
    found = scatter.tensors()
    if found is not None:
        places, penalties = found
        flat = logits.view(-1)
        values = flat[places]
        flat[places] = torch.where(values > 0, values / penalties, values * penalties)


def _penalise_output(logits: torch.Tensor, batch: SamplingBatch) -> None:
    scatter = _Scatter(logits.shape[1])
    for row, (presence, frequency) in enumerate(zip(batch.presence_penalty, batch.frequency_penalty, strict=True)):
        if presence or frequency:
            tokens, counts = np.unique(_ids(batch.output_tokens[row]), return_counts=True)
            scatter.add(row, tokens, (-presence - frequency * counts).astype(np.float32))
    _add(logits, scatter)


def _add_bias(logits: torch.Tensor, batch: SamplingBatch) -> None:
    scatter = _Scatter(logits.shape[1])
    for row, bias in enumerate(batch.bias):
        if bias:
            scatter.add(row, _ids(list(bias)), np.asarray(list(bias.values()), dtype=np.float32))
    _add(logits, scatter)


def _add(logits: torch.Tensor, scatter: _Scatter) -> None:
    found = scatter.tensors()
    if found is not None:
        # Token ids of a row are distinct: nothing is added twice to one place.
        logits.view(-1)[found[0]] += found[1]


def _ban(logits: torch.Tensor, banned: Sequence[Sequence[int]]) -> list[int]:
    rows = [row for row, tokens in enumerate(banned) if tokens]
    scatter = _Scatter(logits.shape[1])
    for row in rows:
        tokens = _ids(banned[row])
        scatter.add(row, tokens, _full(tokens, -math.inf))
    found = scatter.tensors()
    if found is not None:
        logits.view(-1)[found[0]] = -math.inf
    return rows
