"""Attention as its definition reads: every query alone, over the keys it may see.

Knows nothing of batching or masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sagellm_backend.paged import PagedKV
from sagellm_protocol.backend import AttentionBatch


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor | None,
    cache: PagedKV,
    layer: int,
    batch: AttentionBatch,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Write this step's keys and values, then attend causally.

    Args:
        q: ``[T, Hq, D]``.
        k: ``[T, Hkv, D]``.
        v: ``[T, Hkv, Dv]``; ``None`` where keys' leading dimensions are the values.
        cache: Written in place.
        layer: Which of its layers.
        batch: Who attends to what.
        scale: Multiplies the scores.
        softcap: Bounds the scores by ``softcap * tanh(score / softcap)``.
        sinks: For each head a score that takes its share and gives nothing, ``[Hq]``, if any.

    Returns:
        ``[T, Hq, Dv]`` in ``q``'s dtype.
    """
    spec = cache.specs[layer]
    keys, values = cache.keys[layer].transpose(0, 1), cache.values[layer].transpose(0, 1)  # [N * P, Hkv, D]
    if v is None:
        values = keys[..., : spec.latent_dim]
    window = spec.window
    tables = batch.block_tables[cache.groups[layer]]
    repeat = q.shape[1] // k.shape[1]
    outputs = []
    token = 0
    for new, total, table in zip(batch.query_lens, batch.context_lens, tables, strict=True):
        slots = [table[i // cache.block_size] * cache.block_size + i % cache.block_size for i in range(total)]
        keys[slots[total - new :]] = k[token : token + new].to(cache.dtype)
        if v is not None:
            values[slots[total - new :]] = v[token : token + new].to(cache.dtype)
        for position in range(total - new, total):
            first = 0 if window is None else max(0, position + 1 - window)
            if window is not None and spec.chunked:
                first = position // window * window
            seen = slots[first : position + 1]
            seen_keys = keys[seen].float().repeat_interleave(repeat, dim=1)  # [n, Hq, D]
            seen_values = values[seen].float().repeat_interleave(repeat, dim=1)  # [n, Hq, Dv]
            scores = torch.einsum("hd,nhd->hn", q[token].float(), seen_keys) * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if sinks is not None:
                scores = torch.cat((scores, sinks.float()[:, None]), dim=-1)
            shares = torch.softmax(scores, dim=-1)[:, : len(seen)]
            outputs.append(torch.einsum("hn,nhd->hd", shares, seen_values).to(q.dtype))
            token += 1
    return torch.stack(outputs) if outputs else q.new_empty(0, q.shape[1], values.shape[2])


def attend_within(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: Sequence[int], scale: float
) -> torch.Tensor:
    """Attend within each sequence in both directions.

    Args:
        q: ``[T, Hq, D]``.
        k: ``[T, Hkv, D]``.
        v: ``[T, Hkv, D]``.
        lengths: Tokens of each sequence.
        scale: Multiplies the scores.

    Returns:
        ``[T, Hq, D]`` in ``q``'s dtype.
    """
    repeat = q.shape[1] // k.shape[1]
    outputs = []
    for queries, keys, values in zip(*(part.float().split(list(lengths)) for part in (q, k, v)), strict=True):
        keys, values = (part.repeat_interleave(repeat, dim=1) for part in (keys, values))  # [L, Hq, D]
        weights = torch.softmax(torch.einsum("qhd,khd->hqk", queries, keys) * scale, dim=-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs).to(q.dtype)
