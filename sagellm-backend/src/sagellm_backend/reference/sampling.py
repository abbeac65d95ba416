"""Sampling as its definition reads: one row at a time, in double precision.

Among equally likely tokens the lower id is likelier. Knows nothing of requests or seeds.
"""

from __future__ import annotations

import math
from collections import Counter

import torch

from sagellm_protocol.backend import RowLogprobs, Sampled, SamplingBatch
from sagellm_protocol.errors import ErrorCode, SageLLMError


def sample(logits: torch.Tensor, batch: SamplingBatch) -> Sampled:
    """Draw one token from each row of ``[R, V]``."""
    tokens: list[int] = []
    reports: list[RowLogprobs | None] = []
    for row in range(logits.shape[0]):
        raw = logits[row].float()
        token = _draw(_edited(raw.clone(), batch, row), batch, row)
        tokens.append(token)
        wanted = batch.logprobs[row]
        reports.append(None if wanted is None else row_logprobs(raw, token, wanted))
    return Sampled(token_ids=tokens, logprobs=reports)


def row_logprobs(raw: torch.Tensor, token: int, top: int) -> RowLogprobs:
    """Log-probability and rank of ``token`` in a row ``[V]``, and the ``top`` likeliest; equals in order of id."""
    logprobs = torch.log_softmax(raw.float(), dim=-1)
    values, ids = torch.sort(logprobs, descending=True, stable=True)
    return RowLogprobs(
        logprob=logprobs[token].item(),
        rank=int((logprobs > logprobs[token]).sum()) + 1,
        top=tuple(zip(ids[:top].tolist(), values[:top].tolist(), strict=True)),
    )


def _edited(logits: torch.Tensor, batch: SamplingBatch, row: int) -> torch.Tensor:
    """One row ``[V]`` after allowed tokens, masks, penalties, biases and banned tokens."""
    allowed = batch.allowed[row]
    if allowed is not None:
        forbidden = torch.ones_like(logits, dtype=torch.bool)
        forbidden[list(allowed)] = False
        logits[forbidden] = -math.inf
    mask = batch.mask[row] if batch.mask else None
    if mask is not None:
        words = torch.tensor([int(word) for word in mask])
        logits[(words[:, None] >> torch.arange(32) & 1).flatten()[: len(logits)] == 0] = -math.inf
    repetition = batch.repetition_penalty[row]
    if repetition != 1:
        for token in {*batch.prompt_tokens[row], *batch.output_tokens[row]}:
            logits[token] = logits[token] / repetition if logits[token] > 0 else logits[token] * repetition
    for token, count in Counter(batch.output_tokens[row]).items():
        logits[token] -= batch.presence_penalty[row] + count * batch.frequency_penalty[row]
    for token, bias in batch.bias[row].items():
        logits[token] += bias
    logits[list(batch.banned[row])] = -math.inf
    if torch.all(logits == -math.inf):
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"row {row}: no token may be produced; allow at least one")
    return logits


def _draw(logits: torch.Tensor, batch: SamplingBatch, row: int) -> int:
    temperature = batch.temperature[row]
    if not math.isfinite(logits.max()):
        raise SageLLMError(ErrorCode.INTERNAL, "the model's scores are no numbers")
    if temperature == 0:
        return int(logits.argmax())
    # Relative to the largest, and in double precision, a tiny temperature cannot overflow.
    scaled = (logits - logits.max()).double() / temperature
    probabilities = torch.softmax(scaled, dim=-1)
    order = torch.sort(scaled, descending=True, stable=True).indices
    kept = order[: batch.top_k[row]] if batch.top_k[row] > 0 else order
    # The smallest set that reaches top-p: a token stays while those before it fall short.
    shares = probabilities[kept] / probabilities[kept].sum()
    kept = kept[shares.cumsum(-1) - shares < batch.top_p[row]]
    kept = kept[probabilities[kept] >= batch.min_p[row] * probabilities.max()]
    kept = kept[probabilities[kept] > 0].sort().values
    reached = probabilities[kept].cumsum(-1)
    place = int((reached <= batch.uniform[row] * reached[-1]).sum())
    # Past the end through rounding, the last possible token is meant.
    return int(kept[min(place, len(kept) - 1)])
