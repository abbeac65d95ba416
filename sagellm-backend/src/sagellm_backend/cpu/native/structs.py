"""The structs of ``native/sagellm_native.h``, field by field. What a field holds is written there."""

from __future__ import annotations

import ctypes

ABI = 5
"""Version of the interface these structs describe; a library of another is not used."""


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


def _ints(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int32) for name in names]


def _floats(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_float) for name in names]


class Segment(ctypes.Structure):
    """``SageSegment``."""

    _fields_ = [*_ints("kind", "rows"), *_pointers("data")]


class Matrix(ctypes.Structure):
    """``SageMatrix``."""

    _fields_ = [*_ints("kind", "rows", "cols", "segments"), *_pointers("segment", "bias")]


class Layer(ctypes.Structure):
    """``SageLayer``."""

    _fields_ = [
        *_pointers("qkv", "out", "gate_up", "down", "input_norm", "post_norm", "q_norm", "k_norm"),
        *_floats("eps", "scale"),
        *_ints("window", "group"),
    ]


class Decoder(ctypes.Structure):
    """``SageDecoder``."""

    _fields_ = [
        *_ints("layers", "hidden", "inner", "heads", "kv_heads", "head_dim", "rotary_dim", "interleaved"),
        *_floats("attention_factor", "eps"),
        *_pointers("inv_freq", "norm", "embedding", "layer"),
    ]


class Step(ctypes.Structure):
    """``SageStep``."""

    _fields_ = [
        *_ints("tokens", "sequences", "block_size", "kv_type"),
        *_pointers("ids", "positions", "query_lens", "context_lens", "tables"),
        *_ints("table_stride", "reads"),
        *_pointers("pool"),
        ("block_stride", ctypes.c_int64),
        *_pointers("layer_offset", "read"),
    ]


class Attention(ctypes.Structure):
    """``SageAttention``."""

    _fields_ = [
        *_ints("heads", "kv_heads", "head_dim", "value_dim", "window", "group", "layer", "type"),
        *_floats("scale", "softcap"),
    ]


class Draw(ctypes.Structure):
    """``SageDraw``."""

    _fields_ = [
        *_pointers("scores", "raw"),
        *[(name, ctypes.c_double) for name in ("uniform", "top_p")],
        *_floats("temperature", "min_p"),
        *_ints("top_k", "token", "top", "type", "raw_type", "unused"),
    ]


class Drawn(ctypes.Structure):
    """``SageDrawn``."""

    _fields_ = [*_ints("token", "rank", "top"), *_floats("logprob")]
