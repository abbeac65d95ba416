"""Sampling one row of logits, in the order that :class:`~sagellm_protocol.backend.SamplingBatch` gives.

Knows nothing of seeds: the draw's number comes with the row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sagellm_protocol.backend import SamplingBatch

from .operations import softmax

Floats = npt.NDArray[np.float64]


def processed(logits: Floats, batch: SamplingBatch, row: int) -> Floats:
    """A row's logits ``[V]`` after allowed tokens, penalties, biases and banned tokens."""
    x: Floats = logits.astype(np.float64)
    allowed = batch.allowed[row]
    if allowed is not None:
        x[[token for token in range(len(x)) if token not in set(allowed)]] = -np.inf
    mask = batch.mask[row] if batch.mask else None
    if mask is not None:
        x[[token for token in range(len(x)) if not int(mask[token // 32]) >> token % 32 & 1]] = -np.inf
    seen = set(batch.prompt_tokens[row]) | set(batch.output_tokens[row])
    for token in seen:
        x[token] = (
            x[token] / batch.repetition_penalty[row] if x[token] > 0 else x[token] * batch.repetition_penalty[row]
        )
    for token in batch.output_tokens[row]:
        x[token] -= batch.frequency_penalty[row]
    for token in set(batch.output_tokens[row]):
        x[token] -= batch.presence_penalty[row]
    for token, bias in batch.bias[row].items():
        x[token] += bias
    for token in batch.banned[row]:
        x[token] = -np.inf
    return x


def distribution(logits: Floats, batch: SamplingBatch, row: int) -> Floats:
    """Probabilities ``[V]`` that a row's token is drawn from. Greedy rows put all on the likeliest."""
    x = processed(logits, batch, row)
    if batch.temperature[row] == 0:
        shares = np.zeros_like(x)
        shares[int(np.argmax(x))] = 1.0
        return shares
    shares = softmax(x / batch.temperature[row])
    top_k = batch.top_k[row]
    if top_k > 0:
        shares = _keep(shares, np.argsort(-shares, kind="stable")[:top_k])
    order = np.argsort(-shares, kind="stable")
    reached = np.cumsum(shares[order])
    # The smallest set that reaches top_p: a token stays while those before it fall short.
    shares = _keep(shares, order[reached - shares[order] < batch.top_p[row]])
    return _keep(shares, np.flatnonzero(shares >= batch.min_p[row] * shares.max()))


def _keep(shares: Floats, tokens: npt.NDArray[np.int64]) -> Floats:
    kept = np.zeros_like(shares)
    kept[tokens] = shares[tokens]
    scaled: Floats = kept / kept.sum()
    return scaled


def draw(shares: Floats, uniform: float) -> int:
    """The token at which the cumulative distribution over ascending ids passes ``uniform``."""
    return int(np.argmax(np.cumsum(shares) > uniform))


def logprobs(logits: Floats) -> Floats:
    """Log-probabilities of each row of ``[R, V]`` in the model's own distribution."""
    shifted = logits - logits.max(-1, keepdims=True)
    values: Floats = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return values
