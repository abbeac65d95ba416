"""One layer's attention over the native pool, as an operation of its own: for models that no larger unit fits.

Knows nothing of models.
"""

from __future__ import annotations

import ctypes

import torch

from .library import Library
from .matrix import check
from .pool import NativeKV
from .step import NativePlan
from .structs import Attention

_TYPES = {torch.float32: 0, torch.bfloat16: 1}


def attend(
    library: Library,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache: NativeKV,
    layer: int,
    plan: NativePlan,
    *,
    scale: float,
    softcap: float | None,
    level: int | None = None,
) -> torch.Tensor:
    """Write this step's keys and values, then attend: ``[T, Hq, D]`` to ``[T, Hq, Dv]`` in ``q``'s type."""
    if q.dtype not in _TYPES:
        return attend(library, q.float(), k, v, cache, layer, plan, scale=scale, softcap=softcap, level=level).to(
            q.dtype
        )
    q, k, v = q.contiguous(), k.to(q.dtype).contiguous(), v.to(q.dtype).contiguous()
    spec = cache.specs[layer]
    out = torch.empty(q.shape[0], q.shape[1], spec.value_dim, dtype=q.dtype)
    shape = Attention(
        q.shape[1],
        spec.num_kv_heads,
        spec.head_dim,
        spec.value_dim,
        spec.window or 0,
        cache.groups[layer],
        layer,
        _TYPES[q.dtype],
        scale,
        softcap or 0.0,
    )
    plan.struct.positions = plan.positions.ctypes.data
    status = library.handle.sage_attention(
        library.level if level is None else level,
        torch.get_num_threads(),
        ctypes.byref(shape),
        ctypes.byref(plan.struct),
        ctypes.c_void_p(q.data_ptr()),
        ctypes.c_void_p(k.data_ptr()),
        ctypes.c_void_p(v.data_ptr()),
        ctypes.c_void_p(out.data_ptr()),
    )
    check(status)
    return out
