"""Routing and mixtures of experts as their definitions read: one token at a time.

Knows nothing of weights' layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from sagellm_protocol.backend import GateSpec, RoutingSpec


def route(
    logits: torch.Tensor, spec: RoutingSpec, correction: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose experts by float32 logits ``[T, X]``: ids and shares, each ``[T, K]``."""
    scores = torch.softmax(logits, dim=-1) if spec.scoring == "softmax" else torch.sigmoid(logits)
    ids = torch.zeros(logits.shape[0], spec.top_k, dtype=torch.int64)
    shares = torch.zeros(logits.shape[0], spec.top_k)
    size = logits.shape[1] // spec.groups
    for token, own in enumerate(scores):
        standing = own.clone() if correction is None else own + correction.float()
        judged = [run.topk(spec.group_best).values.sum().item() for run in standing.split(size)]
        kept = sorted(range(spec.groups), key=lambda group: -judged[group])[: spec.top_groups]
        for group in range(spec.groups):
            if group not in kept:
                standing[group * size : (group + 1) * size] = float("-inf")
        ids[token] = standing.topk(spec.top_k).indices
        shares[token] = own[ids[token]]
        if spec.renormalize:
            shares[token] /= shares[token].sum() + 1e-20
    return ids, shares * spec.scale


def gate(gate_up: torch.Tensor, spec: GateSpec) -> torch.Tensor:
    """``act(gate) * (up + shift)``, bounded before: ``[T, 2 I]`` float32 to ``[T, I]``."""
    opened, up = gate_up.chunk(2, dim=-1)
    if spec.limit is not None:
        opened, up = opened.clamp(max=spec.limit), up.clamp(-spec.limit, spec.limit)
    if spec.activation == "silu":
        activated = opened * torch.sigmoid(spec.slope * opened)
    else:
        activated = F.gelu(opened, approximate="tanh" if spec.activation == "gelu_tanh" else "none")
    return activated * (up + spec.shift)


def mix(
    x: torch.Tensor,
    experts: torch.Tensor,
    shares: torch.Tensor,
    gate_up: Sequence[Any],
    down: Sequence[Any],
    product: Callable[[torch.Tensor, Any], torch.Tensor],
    spec: GateSpec,
) -> torch.Tensor:
    """Token by token: its experts' outputs, weighted; ``[T, E]`` in ``x``'s dtype."""
    result = torch.zeros(x.shape)
    for token in range(x.shape[0]):
        row = x[token : token + 1].float()
        for expert, share in zip(experts[token].tolist(), shares[token], strict=True):
            before, after = (share, 1.0) if spec.shares_first else (1.0, share)
            result[token] += after * product(gate(product(before * row, gate_up[expert]), spec), down[expert])[0]
    return result.to(x.dtype)
