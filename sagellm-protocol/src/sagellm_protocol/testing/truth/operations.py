"""Layers of a transformer, element by element where that reads best.

Dimension letters are those of :mod:`sagellm_protocol.backend`. Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sagellm_protocol.backend import RopeSpec

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


def moe(
    x: Floats,
    router_logits: Floats,
    gate_up: Sequence[Floats],
    down: Sequence[Floats],
    top_k: int,
    *,
    renormalize: bool,
) -> Floats:
    """Each token through its best ``top_k`` gated SiLU experts, weighted by the router's softmax."""
    result = np.zeros_like(x)
    for token, shares in enumerate(softmax(router_logits)):
        best = np.argsort(-shares)[:top_k]
        total = shares[best].sum() if renormalize else 1.0
        for expert in best:
            inner = silu_mul(linear(x[token : token + 1], gate_up[expert]))
            result[token] += shares[expert] / total * linear(inner, down[expert])[0]
    return result
