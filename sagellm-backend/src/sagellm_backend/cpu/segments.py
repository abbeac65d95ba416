"""Attention in both directions within sequences that lie one after another: torch's kernel, once for each length.

Sequences of equal length are a batch without padding, so nothing is computed that is thrown away. Knows nothing of
caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Batch:
    """Sequences of one length.

    Attributes:
        count: How many.
        length: Tokens of each.
        rows: Their tokens, ``[count * length]`` int64, or a slice where they lie together.
    """

    count: int
    length: int
    rows: slice | torch.Tensor


@dataclass(frozen=True)
class SegmentPlan:
    """Who attends to whom in one step.

    Attributes:
        batches: One for each length there is.
    """

    batches: tuple[Batch, ...]


def plan_segments(lengths: Sequence[int]) -> SegmentPlan:
    """Put sequences of equal length together."""
    starts: dict[int, list[int]] = {}
    start = 0
    for length in lengths:
        starts.setdefault(length, []).append(start)
        start += length
    return SegmentPlan(tuple(_batch(length, found) for length, found in starts.items()))


def _batch(length: int, starts: list[int]) -> Batch:
    count, first = len(starts), starts[0]
    if starts[-1] - first == (count - 1) * length:
        return Batch(count, length, slice(first, first + count * length))
    rows = (torch.tensor(starts)[:, None] + torch.arange(length)).reshape(-1)
    return Batch(count, length, rows)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: SegmentPlan, scale: float) -> torch.Tensor:
    """Attend; ``[T, Hq, D]`` to ``[T, Hq, D]``."""
    if len(plan.batches) == 1:
        return _attend(q, k, v, plan.batches[0], scale)
    out = torch.empty(q.shape, dtype=q.dtype)
    for batch in plan.batches:
        out[batch.rows] = _attend(q[batch.rows], k[batch.rows], v[batch.rows], batch, scale)
    return out


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: Batch, scale: float) -> torch.Tensor:
    # Each is [n, H, length, D] from here on.
    queries, keys, values = (part.unflatten(0, (batch.count, batch.length)).transpose(1, 2) for part in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    result = F.scaled_dot_product_attention(queries, keys, values, scale=scale, enable_gqa=grouped)
    return result.transpose(1, 2).reshape(q.shape)
