"""Every operation of a backend written out slowly in NumPy, in float64: what implementations are compared with.

Needs NumPy, which the package itself does not. Knows nothing of devices.
"""

from __future__ import annotations

from .attention import paged_attention, segment_attention
from .operations import (
    embedding,
    gate,
    gelu,
    gelu_mul,
    headwise,
    layer_norm,
    linear,
    moe,
    rms_norm,
    rope,
    route,
    silu_mul,
    softcap,
)
from .sampling import distribution, draw, logprobs
from .scaled import random_weight, values
from .weights import dequantize, random_blocks

__all__ = [
    "dequantize",
    "distribution",
    "draw",
    "embedding",
    "gate",
    "gelu",
    "gelu_mul",
    "headwise",
    "layer_norm",
    "linear",
    "logprobs",
    "moe",
    "paged_attention",
    "random_blocks",
    "random_weight",
    "rms_norm",
    "rope",
    "route",
    "segment_attention",
    "silu_mul",
    "softcap",
    "values",
]
