"""A whole decoder's step in one native call: which units it fits, and how it is called.

Residual stream, norms and softmax are float32; what meets a matrix is quantised or rounded as that matrix wants it.
Knows nothing of models beyond what a unit says.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from sagellm_protocol.backend import FusableUnit, RopeSpec
from sagellm_protocol.devices import DType

from .library import Library
from .matrix import NativeMatrix, check
from .pool import NativeKV
from .step import NativePlan
from .structs import Decoder, Layer

_LARGEST_HEAD = 256
_LAYER_WEIGHTS = ("qkv", "out", "gate_up", "down")
_LAYER_VECTORS = ("input_norm", "post_norm", "q_norm", "k_norm")


def fuse_decoder(library: Library, unit: FusableUnit, level: int | None = None) -> Callable[..., torch.Tensor] | None:
    """The unit as one call, or ``None`` where the kernels do not fit it."""
    return FusedDecoder(library, unit, library.level if level is None else level) if _fits(unit) else None


def _fits(unit: FusableUnit) -> bool:
    config = unit.config
    layers = [f"layers.{i}." for i in range(config["num_layers"])]
    if not layers or config["dtype"] is not DType.BFLOAT16:
        return False
    if not all(isinstance(weight, NativeMatrix) for weight in unit.weights.values()):
        return False
    if any(isinstance(weight, NativeMatrix) and weight.columns is not None for weight in unit.weights.values()):
        return False
    first = layers[0]
    same = ("num_heads", "num_kv_heads", "head_dim", "rope")
    if any(config[layer + name] != config[first + name] for layer in layers for name in same):
        return False
    if any(config[layer + "activation"] != "silu" for layer in layers):
        return False
    heads, kv_heads, dim = (config[first + name] for name in same[:3])
    hidden = unit.weights["embedding"].shape[1]
    inner = unit.weights[first + "down"].shape[1]
    shapes = {
        "qkv": ((heads + 2 * kv_heads) * dim, hidden),
        "out": (hidden, heads * dim),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
    }
    if any(unit.weights[layer + role].shape != shape for layer in layers for role, shape in shapes.items()):
        return False
    whole_blocks = hidden % 32 == 0 and inner % 32 == 0 and (heads * dim) % 32 == 0 and dim % 16 == 0
    return whole_blocks and dim <= _LARGEST_HEAD and heads % kv_heads == 0


class FusedDecoder:
    """Calls the native step. Made by :func:`fuse_decoder`."""

    def __init__(self, library: Library, unit: FusableUnit, level: int) -> None:
        config = unit.config
        weights = {role: weight for role, weight in unit.weights.items() if isinstance(weight, NativeMatrix)}
        count: int = config["num_layers"]
        self._library, self._level = library, level
        self._hidden, self._vocabulary = weights["embedding"].shape[1], weights["embedding"].shape[0]
        # The kernels read these as long as the unit lives.
        self._kept: list[Any] = [weights]
        windows = [config[f"layers.{i}.window"] or 0 for i in range(count)]
        groups = list(dict.fromkeys(windows))
        self._layers = (Layer * count)()
        for i in range(count):
            at = f"layers.{i}."
            self._layers[i] = Layer(
                *(ctypes.addressof(weights[at + role].struct) for role in _LAYER_WEIGHTS),
                *(self._floats(unit.vectors.get(at + role)) for role in _LAYER_VECTORS),
                config[at + "eps"],
                config[at + "scale"],
                windows[i],
                groups.index(windows[i]),
            )
        rope: RopeSpec | None = config["layers.0.rope"]
        self._decoder = Decoder(
            count,
            self._hidden,
            weights["layers.0.down"].shape[1],
            config["layers.0.num_heads"],
            config["layers.0.num_kv_heads"],
            config["layers.0.head_dim"],
            0 if rope is None else rope.rotary_dim,
            rope is not None and rope.interleaved,
            1.0 if rope is None else rope.attention_factor,
            config["eps"],
            None if rope is None else self._floats(torch.tensor(rope.inv_freq)),
            self._floats(unit.vectors["norm"]),
            ctypes.addressof(weights["embedding"].struct),
            ctypes.addressof(self._layers),
        )

    def __call__(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        cache: NativeKV,
        plan: NativePlan,
        read: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Ids ``[T]`` to hidden states after the last norm, float32: ``[T, E]``, or ``[R, E]`` of rows ``read``."""
        ids, positions = ids.to(torch.int32).contiguous(), positions.to(torch.int32).contiguous()
        rows = None if read is None else np.ascontiguousarray(read, dtype=np.int32)
        out = torch.empty(len(ids) if rows is None else len(rows), self._hidden)
        step = plan.struct
        step.ids, step.positions = ids.data_ptr(), positions.data_ptr()
        step.reads, step.read = (0, None) if rows is None else (len(rows), rows.ctypes.data)
        status = self._library.handle.sage_decoder_run(
            self._level,
            torch.get_num_threads(),
            ctypes.byref(self._decoder),
            ctypes.byref(step),
            ctypes.c_void_p(out.data_ptr()),
        )
        check(status, self._vocabulary)
        return out

    def _floats(self, vector: torch.Tensor | None) -> int | None:
        if vector is None:
            return None
        kept = vector.float().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()
