"""Mixtures of experts: tokens sorted by expert once, then one product an expert that any of them chose.

Knows nothing of weights' layouts: products are the backend's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sagellm_protocol.backend import RoutingSpec

Product = Callable[[torch.Tensor, Any], torch.Tensor]
"""Rows ``[n, E]`` and a weight ``(O, E)`` to ``[n, O]``."""

_TINY = 1e-20
"""Added to a sum of shares that is divided by: sigmoids can all be zero."""


def route(
    logits: torch.Tensor, spec: RoutingSpec, correction: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts by float32 logits ``[T, X]``: their ids ``[T, K]`` int64, and their shares in float32."""
    scores = logits.softmax(-1) if spec.scoring == "softmax" else logits.sigmoid()
    standing = scores if correction is None else scores + correction
    if spec.groups > 1:
        runs = standing.unflatten(1, (spec.groups, -1))  # [T, groups, X / groups]
        of_runs = runs.amax(-1) if spec.group_best == 1 else runs.topk(spec.group_best, dim=-1).values.sum(-1)
        closed = torch.ones_like(of_runs, dtype=torch.bool)
        closed.scatter_(1, of_runs.topk(spec.top_groups, dim=-1).indices, False)
        standing = runs.masked_fill(closed[..., None], float("-inf")).flatten(1)
    experts = standing.topk(spec.top_k, dim=-1).indices
    shares = scores.gather(1, experts)
    if spec.renormalize:
        shares = shares / (shares.sum(-1, keepdim=True) + _TINY)
    return experts, shares if spec.scale == 1.0 else shares * spec.scale


def mix(
    x: torch.Tensor,
    experts: torch.Tensor,
    shares: torch.Tensor,
    gate_up: Sequence[Any],
    down: Sequence[Any],
    product: Product,
    gate: Callable[[torch.Tensor], torch.Tensor],
    *,
    shares_first: bool = False,
) -> torch.Tensor:
    """Each token through its experts, their outputs summed by their shares in float32.

    Args:
        x: ``[T, E]``.
        experts: ``[T, K]``.
        shares: ``[T, K]`` float32.
        gate_up: Of each expert, ``(2 I, E)``.
        down: Of each expert, ``(E, I)``.
        product: Multiplies by a weight.
        gate: ``[n, 2 I]`` to ``[n, I]``.
        shares_first: Experts are given their shares of a token, and their outputs summed as they are.

    Returns:
        ``[T, E]`` in ``x``'s dtype.
    """
    chosen = experts.reshape(-1)  # [T K]
    order = chosen.argsort(stable=True)
    tokens = order // experts.shape[1]
    rows, ordered = x.index_select(0, tokens), shares.reshape(-1)[order, None]
    if shares_first:
        rows = (rows.float() * ordered).to(x.dtype)
    counts = torch.bincount(chosen, minlength=len(down)).tolist()
    pieces, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            inner = gate(product(rows[start : start + count], gate_up[expert]))
            pieces.append(product(inner, down[expert]))
            start += count
    if not pieces:
        return x.clone()
    weighted = torch.cat(pieces).float()
    if not shares_first:
        weighted *= ordered
    # Of each token the experts are added in order of their number, whoever else is in the step.
    return x.new_zeros(x.shape, dtype=torch.float32).index_add_(0, tokens, weighted).to(x.dtype)
