"""Layers of a transformer, element by element where that reads best.

Dimension letters are those of :mod:`sagellm_protocol.backend`. Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sagellm_protocol.backend import GateSpec, RopeSpec, RoutingSpec

Floats = npt.NDArray[np.float64]


def linear(x: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
    """``[T, E]`` by ``[O, E]`` to ``[T, O]``."""
    product: Floats = x @ weight.T
    return product if bias is None else product + bias


def embedding(ids: Sequence[int], weight: Floats) -> Floats:
    """Rows ``[T, E]`` of a table ``[V, E]``."""
    return weight[list(ids)]


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """Zhang & Sennrich 2019, over the last axis."""
    scaled: Floats = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight
    return scaled


def layer_norm(x: Floats, weight: Floats, bias: Floats | None, eps: float) -> Floats:
    """Ba et al. 2016, over the last axis."""
    centred: Floats = x - x.mean(-1, keepdims=True)
    scaled: Floats = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps) * weight
    return scaled if bias is None else scaled + bias


def rope(x: Floats, positions: Sequence[int], spec: RopeSpec) -> Floats:
    """Su et al. 2021: rotate each pair of ``[T, H, D]`` by its frequency times the token's position."""
    half = spec.rotary_dim // 2
    rotated: Floats = x.copy()
    for token, position in enumerate(positions):
        for pair, frequency in enumerate(spec.inv_freq):
            first, second = (2 * pair, 2 * pair + 1) if spec.interleaved else (pair, pair + half)
            cosine = math.cos(position * frequency) * spec.attention_factor
            sine = math.sin(position * frequency) * spec.attention_factor
            a, b = x[token, :, first], x[token, :, second]
            rotated[token, :, first] = a * cosine - b * sine
            rotated[token, :, second] = b * cosine + a * sine
    return rotated


def silu_mul(gate_up: Floats) -> Floats:
    """``[T, 2 I]`` to ``[T, I]``."""
    gate, up = np.split(gate_up, 2, axis=-1)
    product: Floats = gate / (1 + np.exp(-gate)) * up
    return product


def gelu_mul(gate_up: Floats, *, approximate: bool) -> Floats:
    """``[T, 2 I]`` to ``[T, I]``."""
    gate, up = np.split(gate_up, 2, axis=-1)
    product: Floats = gelu(gate, approximate=approximate) * up
    return product


def gelu(x: Floats, *, approximate: bool) -> Floats:
    """Hendrycks & Gimpel 2016, by the error function or its tanh approximation."""
    if approximate:
        curve = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    else:
        curve = np.vectorize(math.erf)(x / math.sqrt(2))
    activated: Floats = 0.5 * x * (1 + curve)
    return activated


def softcap(x: Floats, cap: float) -> Floats:
    """``cap * tanh(x / cap)`` (Bello et al. 2016)."""
    capped: Floats = cap * np.tanh(x / cap)
    return capped


def softmax(x: Floats) -> Floats:
    """Over the last axis."""
    raised = np.exp(x - x.max(-1, keepdims=True))
    shares: Floats = raised / raised.sum(-1, keepdims=True)
    return shares


def headwise(x: Floats, weight: Floats) -> Floats:
    """``[T, H, D]`` by ``[H, D, O]`` to ``[T, H, O]``."""
    return np.stack([x[:, head] @ weight[head] for head in range(x.shape[1])], axis=1)


def gate(gate_up: Floats, spec: GateSpec) -> Floats:
    """``[T, 2 I]`` to ``[T, I]``."""
    opened, up = np.split(gate_up, 2, axis=-1)
    if spec.limit is not None:
        opened, up = np.minimum(opened, spec.limit), np.clip(up, -spec.limit, spec.limit)
    if spec.activation == "silu":
        activated: Floats = opened / (1 + np.exp(-spec.slope * opened))
    else:
        activated = gelu(opened, approximate=spec.activation == "gelu_tanh")
    return activated * (up + spec.shift)


def route(logits: Floats, spec: RoutingSpec, correction: Floats | None = None) -> Floats:
    """Each token's share of every expert, ``[T, X]``: 0 of those that are not chosen."""
    scores: Floats = softmax(logits) if spec.scoring == "softmax" else 1 / (1 + np.exp(-logits))
    result = np.zeros_like(scores)
    for token, own in enumerate(scores):
        standing = own if correction is None else own + correction
        runs = standing.reshape(spec.groups, -1)
        best = np.argsort(-np.sort(runs, axis=1)[:, -spec.group_best :].sum(1))[: spec.top_groups]
        open_to = np.isin(np.arange(spec.groups), best)
        standing = np.where(open_to[:, None], runs, -np.inf).reshape(-1)
        chosen = np.argsort(-standing)[: spec.top_k]
        total = own[chosen].sum() if spec.renormalize else 1.0
        result[token, chosen] = own[chosen] / total * spec.scale
    return result


def moe(
    x: Floats,
    shares: Floats,
    gate_up: Sequence[tuple[Floats, Floats | None]],
    down: Sequence[tuple[Floats, Floats | None]],
    spec: GateSpec,
) -> Floats:
    """Each token through every expert, matrix and bias, by the shares ``[T, X]`` that :func:`route` gives."""
    result = np.zeros_like(x)
    for expert in range(shares.shape[1]):
        share = shares[:, expert : expert + 1]
        if spec.shares_first:
            part = linear(gate(linear(share * x, *gate_up[expert]), spec), *down[expert])
            result += np.where(share > 0, part, 0)  # with biases, an expert makes something of nothing
        else:
            result += share * linear(gate(linear(x, *gate_up[expert]), spec), *down[expert])
    return result
