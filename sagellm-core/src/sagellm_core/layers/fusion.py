"""Larger units offered to a backend: an MLP, a layer, the whole stack, described by numbers and weights.

A backend that claims one computes it in one call; operation by operation, as the layers themselves do it, stays the
truth that it is tested against. What each kind holds, and how its callable is called, is written at
:class:`~sagellm_protocol.backend.FusableUnit`. Knows nothing of what backends make of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sagellm_protocol.backend import Backend, FusableUnit, Weight

from .decoder import DecoderLayer
from .linear import Embedding, RMSNorm, Tensor
from .mlp import GatedMLP

MLP, LAYER, DECODER = "mlp", "layer", "decoder"

Stack = Callable[..., Tensor]
"""From ids, positions, cache and plan to hidden states after the last norm."""
Step = Callable[..., tuple[Tensor, Tensor]]
"""What a :class:`DecoderLayer` is to its caller."""


def fuse_stack(
    ops: Backend[Tensor], embedding: Embedding, layers: Sequence[DecoderLayer], norm: RMSNorm
) -> Stack | None:
    """The whole stack in one call, if the backend claims it."""
    if DECODER not in ops.capabilities().fused_units:
        return None
    return ops.fuse(decoder_unit(embedding, layers, norm))


def fuse_layers(ops: Backend[Tensor], layers: Sequence[DecoderLayer]) -> list[Step]:
    """The layers, each as one call where the backend claims it, else with its MLP as one where it claims that."""
    claimed = ops.capabilities().fused_units
    steps: list[Step] = []
    for layer in layers:
        step = ops.fuse(layer_unit(layer)) if LAYER in claimed else None
        if step is None and MLP in claimed:
            step = replace(layer, fused_mlp=ops.fuse(mlp_unit(layer.mlp)))
        steps.append(step or layer)
    return steps


def mlp_unit(mlp: GatedMLP) -> FusableUnit:
    """A gated MLP."""
    weights = {"gate_up": mlp.gate_up.weight, "down": mlp.down.weight}
    return FusableUnit(MLP, {"activation": mlp.activation}, weights, {})


def layer_unit(layer: DecoderLayer) -> FusableUnit:
    """A decoder layer."""
    attention, spec = layer.attention, layer.attention.spec
    config = {
        "activation": layer.mlp.activation,
        "eps": layer.input_norm.eps,
        "head_dim": spec.head_dim,
        "layer": attention.layer,
        "num_heads": attention.num_heads,
        "num_kv_heads": spec.num_kv_heads,
        "rope": attention.rope,
        "scale": attention.scale,
        "window": spec.window,
    }
    weights = {
        "qkv": attention.qkv.weight,
        "out": attention.out.weight,
        "gate_up": layer.mlp.gate_up.weight,
        "down": layer.mlp.down.weight,
    }
    norms = {
        "input_norm": layer.input_norm,
        "post_norm": layer.post_norm,
        "q_norm": attention.q_norm,
        "k_norm": attention.k_norm,
    }
    vectors = {role: norm.weight for role, norm in norms.items() if norm is not None}
    return FusableUnit(LAYER, config, weights, vectors)


def decoder_unit(embedding: Embedding, layers: Sequence[DecoderLayer], norm: RMSNorm) -> FusableUnit:
    """The whole stack, from token ids to normalised hidden states."""
    config: dict[str, Any] = {"dtype": embedding.dtype, "eps": norm.eps, "num_layers": len(layers)}
    weights: dict[str, Weight] = {"embedding": embedding.weight}
    vectors: dict[str, Tensor] = {"norm": norm.weight}
    for index, layer in enumerate(layers):
        unit, prefix = layer_unit(layer), f"layers.{index}."
        config.update((prefix + role, value) for role, value in unit.config.items())
        weights.update((prefix + role, weight) for role, weight in unit.weights.items())
        vectors.update((prefix + role, vector) for role, vector in unit.vectors.items())
    return FusableUnit(DECODER, config, weights, vectors)
