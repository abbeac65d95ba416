"""Every operation of a backend written out slowly in NumPy, in float64: what implementations are compared with.

Needs NumPy, which the package itself does not. Knows nothing of devices.
"""

from __future__ import annotations

from .attention import paged_attention, segment_attention
from .operations import embedding, gelu, gelu_mul, layer_norm, linear, moe, rms_norm, rope, silu_mul, softcap
from .sampling import distribution, draw, logprobs
from .weights import dequantize, random_blocks

__all__ = [
    "dequantize",
    "distribution",
    "draw",
    "embedding",
    "gelu",
    "gelu_mul",
    "layer_norm",
    "linear",
    "logprobs",
    "moe",
    "paged_attention",
    "random_blocks",
    "rms_norm",
    "rope",
    "segment_attention",
    "silu_mul",
    "softcap",
]
