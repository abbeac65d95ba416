"""Paged attention over torch's fused kernel: gather rows, attend, one call a span of the plan.

Knows nothing of how spans were chosen.
"""

from __future__ import annotations

import torch

from sagellm_backend.paged import PagedKV
from .plan import GroupPlan, Span
from .rotary import side_by_side

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


def write(k: torch.Tensor, v: torch.Tensor, cache: PagedKV, layer: int, slots: torch.Tensor) -> None:
    """Put keys ``[T, Hkv, D]`` and values ``[T, Hkv, Dv]`` into their rows of the pool."""
    rows = cache.rows[layer]
    both = side_by_side(k, v) if k.dtype == cache.dtype else None
    if both is not None:
        rows.index_copy_(0, slots, both.flatten(1))
        return
    width = cache.specs[layer].num_kv_heads * cache.specs[layer].head_dim
    rows[:, :width].index_copy_(0, slots, k.flatten(1).to(cache.dtype))
    if width < rows.shape[1]:
        rows[:, width:].index_copy_(0, slots, v.flatten(1).to(cache.dtype))


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache: PagedKV,
    layer: int,
    plan: GroupPlan,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attend to what is cached, this step's keys included; ``[T, Hq, D]`` to ``[T, Hq, Dv]``."""
    spec = cache.specs[layer]
    only = len(plan.spans) == 1
    out = None if only else q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    for span in plan.spans:
        queries = q if only and span.count * span.query_len == q.shape[0] else q[span.tokens]
        if span.keys is None:
            keys = k[span.tokens].unsqueeze(0)  # [1, length, Hkv, D]
            values = v[span.tokens].unsqueeze(0)
        else:
            rows = cache.rows[layer]
            seen = rows[span.keys] if isinstance(span.keys, slice) else rows.index_select(0, span.keys)
            if seen.dtype != q.dtype:
                seen = seen.to(q.dtype)
            width = spec.num_kv_heads * spec.head_dim
            seen = seen.view(span.count, span.length, -1)
            keys = seen[..., :width].unflatten(2, (spec.num_kv_heads, spec.head_dim))  # [n, length, Hkv, D]
            values = seen[..., width:].unflatten(2, (spec.num_kv_heads, spec.value_dim))
        if softcap is None and spec.head_dim == spec.value_dim:
            result = _fused(queries, keys, values, span, scale)
        else:
            result = _explicit(queries, keys, values, span, scale, softcap)
        if out is None:
            return result
        out[span.tokens] = result
    return q.new_empty(0, q.shape[1], v.shape[2]) if out is None else out


def _fused(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, span: Span, scale: float) -> torch.Tensor:
    heads, size = q.shape[1:]
    kv_heads = keys.shape[2]
    group = heads // kv_heads
    mask = span.mask if span.mask is None or span.mask.dtype == q.dtype else span.mask.to(q.dtype)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)  # [n, Hkv, length, D]
    if span.query_len == 1:
        # The query heads that share a key head become its queries: each key is read once.
        result = _flash(q.view(span.count, kv_heads, group, size), keys, values, attn_mask=mask, scale=scale)[0]
        return result.reshape(span.count, heads, -1)
    # One sequence: the heads that share a key head go along the batch axis, over which keys repeat at stride 0.
    split = q.view(span.query_len, kv_heads, group, size).permute(2, 1, 0, 3)  # [G, Hkv, new, D]
    result = _flash(
        split,
        keys.expand(group, -1, -1, -1),
        values.expand(group, -1, -1, -1),
        is_causal=span.causal,
        attn_mask=mask,
        scale=scale,
    )[0]
    return result.permute(2, 1, 0, 3).reshape(span.query_len, heads, -1)


def _explicit(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, span: Span, scale: float, softcap: float | None
) -> torch.Tensor:
    """Attention spelled out, for what the fused kernel lacks: bounded scores, values of another size than keys."""
    heads, size = q.shape[1:]
    kv_heads = keys.shape[2]
    split = q.view(span.count, span.query_len, kv_heads, heads // kv_heads, size).permute(0, 2, 3, 1, 4).float()
    keys = keys.permute(0, 2, 3, 1).unsqueeze(2).float()  # [n, Hkv, 1, D, length]
    values = values.transpose(1, 2).unsqueeze(2).float()  # [n, Hkv, 1, length, Dv]
    scores = torch.matmul(split, keys).mul_(scale)  # [n, Hkv, G, new, length]
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if span.mask is not None:
        scores += span.mask.unsqueeze(1)
    elif span.causal:
        scores.masked_fill_(torch.ones(span.query_len, span.length, dtype=torch.bool).triu_(1), float("-inf"))
    result = torch.matmul(torch.softmax(scores, dim=-1), values)  # [n, Hkv, G, new, Dv]
    return result.permute(0, 3, 1, 2, 4).reshape(span.count * span.query_len, heads, -1).to(q.dtype)
