"""Paged attention over torch's fused kernel: gather rows, attend, one call a span of the plan.

Knows nothing of how spans were chosen.
"""

from __future__ import annotations

import torch

from sagellm_backend.paged import PagedKV

from .plan import GroupPlan, Span
from .rotary import side_by_side


def _flash(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, span: Span, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call the fused kernel of torch, without the dispatcher above it that would repeat grouped keys in memory.

    Returns:
        What it attends to, ``[B, H, L, D]``, and the logarithm of each softmax's denominator, ``[B, H, L]``.
    """
    result: tuple[torch.Tensor, torch.Tensor] = _flash_kernel(
        q, keys, values, is_causal=span.causal, attn_mask=span.mask, scale=scale
    )
    return result


_flash_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default

_MATMUL_FROM = 8
"""Decoding sequences from which two batched matrix products beat the fused kernel, which pays for each head of each
sequence. Measured in BF16: level at 4 to 8 sequences, 1.4 times faster at 16, twice at 64; in float32 never faster."""


def write(k: torch.Tensor, v: torch.Tensor | None, cache: PagedKV, layer: int, slots: torch.Tensor) -> None:
    """Put keys ``[T, Hkv, D]`` and values ``[T, Hkv, Dv]``, if there are any apart, into their rows of the pool."""
    pool = cache.both[layer]
    if pool is not None and v is not None and k.dtype == cache.dtype:
        both = side_by_side(k, v)
        if both is not None:
            pool.index_copy_(1, slots, both.transpose(0, 1))
            return
    cache.keys[layer].index_copy_(1, slots, k.transpose(0, 1).to(cache.dtype))
    if v is not None:
        cache.values[layer].index_copy_(1, slots, v.transpose(0, 1).to(cache.dtype))


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor | None,
    cache: PagedKV,
    layer: int,
    plan: GroupPlan,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend to what is cached, this step's keys included; ``[T, Hq, D]`` to ``[T, Hq, Dv]``.

    Where values are the leading dimensions of keys, keys stand in for them, and the rest of what comes out is dropped:
    the fused kernel wants both of one size, and reads each key once so.
    """
    spec = cache.specs[layer]
    if v is None:
        v = k
    sinks = None if sinks is None else sinks.float()
    if len(plan.spans) == 1 and isinstance(plan.spans[0].tokens, slice):
        out = _attend_span(q, k, v, cache, layer, plan.spans[0], scale, softcap, sinks)
    else:
        out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
        for span in plan.spans:
            tokens = span.tokens
            own = (k[tokens], v[tokens]) if span.keys is None else (k, v)
            out[tokens] = _attend_span(q[tokens], *own, cache, layer, span, scale, softcap, sinks)
    return out if spec.value_dim else out[..., : spec.latent_dim]


def _attend_span(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache: PagedKV,
    layer: int,
    span: Span,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One span's queries over its keys."""
    if span.keys is None:
        keys, values = k.transpose(0, 1), v.transpose(0, 1)  # [Hkv, n * length, D]
    else:
        keys, values = _gather(cache, layer, span.keys, q.dtype)
    if softcap is not None or keys.shape[-1] != values.shape[-1]:
        return _explicit(q, keys, values, span, scale, softcap, sinks)
    if span.query_len == 1 and span.count >= _MATMUL_FROM and q.dtype is torch.bfloat16 and sinks is None:
        return _by_matmul(q, keys, values, span, scale)
    return _fused(q, keys, values, span, scale, sinks)


def _gather(
    cache: PagedKV, layer: int, rows: slice | torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of pool rows, each ``[Hkv, n, D]``; views of the pool where the rows lie together."""
    pool = cache.both[layer]
    if cache.specs[layer].value_dim == 0:
        keys = cache.keys[layer]
        keys = (keys[:, rows] if isinstance(rows, slice) else keys.index_select(1, rows)).to(dtype)
        return keys, keys
    if isinstance(rows, slice):
        keys, values = cache.keys[layer][:, rows], cache.values[layer][:, rows]
    elif pool is not None:
        keys, values = pool.index_select(1, rows).chunk(2)
    else:
        keys, values = cache.keys[layer].index_select(1, rows), cache.values[layer].index_select(1, rows)
    if cache.dtype is not dtype:
        return keys.to(dtype), values.to(dtype)
    return keys, values


def _by_matmul(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, span: Span, scale: float) -> torch.Tensor:
    """Attention of many decoding sequences in BF16 by batched matrix products.

    A product of BF16 matrices is rounded to BF16, too coarse for scores. What the rounding lost is a second product,
    minus the first: their sum carries 16 bits, and the softmax runs in float32 as precisely as in the fused kernel.
    """
    heads, size = q.shape[1:]
    kv_heads, group, count = keys.shape[0], heads // keys.shape[0], span.count
    queries = q.view(count, kv_heads, group, size).transpose(0, 1).reshape(-1, group, size)  # [Hkv n, G, D]
    turned = keys.view(kv_heads * count, span.length, size).transpose(1, 2)  # [Hkv n, D, length]
    high = torch.bmm(queries, turned)  # [Hkv n, G, length]
    low = torch.baddbmm(high, queries, turned, beta=-1)
    scores = high.float().add_(low.float()).mul_(scale)
    if span.mask is not None:
        scores.view(kv_heads, count, group, span.length).add_(span.mask[:, 0])
    weights = torch.softmax(scores, dim=-1).to(q.dtype)
    result = torch.bmm(weights, values.view(kv_heads * count, span.length, size))
    return result.view(kv_heads, count, group, size).transpose(0, 1).reshape(count, heads, size)


def _fused(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    span: Span,
    scale: float,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention by torch's fused kernel.

    A sink only makes the softmax's denominator larger: the result shrinks by ``sigmoid(log(denominator) - sink)``.
    """
    heads, size = q.shape[1:]
    kv_heads, group, count = keys.shape[0], heads // keys.shape[0], span.count
    if span.query_len == 1:
        # The query heads that share a key head become its queries: each key is read once.
        shape = (kv_heads, count, span.length, size)
        keys, values = keys.reshape(shape).transpose(0, 1), values.reshape(shape).transpose(0, 1)
        result, logs = _flash(q.reshape(count, kv_heads, group, size), keys, values, span, scale)
        if sinks is not None:
            result = result * torch.sigmoid(logs - sinks.view(kv_heads, group))[..., None]
        return result.reshape(count, heads, size).to(q.dtype)
    # One sequence: the heads that share a key head go along the batch axis, over which keys repeat at stride 0.
    split = q.view(span.query_len, kv_heads, group, size).permute(2, 1, 0, 3)  # [G, Hkv, new, D]
    keys, values = keys.expand(group, -1, -1, -1), values.expand(group, -1, -1, -1)
    result, logs = _flash(split, keys, values, span, scale)
    if sinks is not None:
        result = result * torch.sigmoid(logs - sinks.view(kv_heads, group).t()[..., None])[..., None]
    return result.permute(2, 1, 0, 3).reshape(span.query_len, heads, size).to(q.dtype)


def _explicit(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    span: Span,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention spelled out, for what the fused kernel lacks: bounded scores, values of another size than keys."""
    heads, size = q.shape[1:]
    kv_heads, group, new = keys.shape[0], heads // keys.shape[0], span.query_len
    split = q.view(span.count, new, kv_heads, group, size).permute(2, 0, 3, 1, 4).float()
    split = split.reshape(kv_heads, span.count, group * new, size)  # queries of a key head together: it is read once
    keys = keys.unflatten(1, (span.count, span.length)).float()  # [Hkv, n, length, D]
    values = values.unflatten(1, (span.count, span.length)).float()
    scores = torch.matmul(split, keys.transpose(-1, -2)).mul_(scale)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    scores = scores.view(kv_heads, span.count, group, new, span.length)
    if span.mask is not None:
        scores += span.mask
    elif span.causal:
        scores.masked_fill_(torch.ones(new, span.length, dtype=torch.bool).triu_(1), float("-inf"))
    if sinks is not None:
        column = sinks.view(kv_heads, 1, group, 1, 1).expand(-1, span.count, -1, new, -1)
        scores = torch.cat((scores, column), dim=-1)
    shares = torch.softmax(scores, dim=-1)[..., : span.length].reshape(kv_heads, span.count, group * new, span.length)
    result = torch.matmul(shares, values).view(kv_heads, span.count, group, new, -1)  # [Hkv, n, G, new, Dv]
    return result.permute(1, 3, 0, 2, 4).reshape(span.count * new, heads, -1).to(q.dtype)
