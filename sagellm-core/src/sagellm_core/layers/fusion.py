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

from .attention import Attention
from .decoder import DecoderLayer, Layer, ParallelLayer
from .embedding import InputEmbedding
from .linear import Tensor
from .mlp import GatedMLP
from .norm import Norm, RMSNorm

MLP, LAYER, DECODER = "mlp", "layer", "decoder"

Stack = Callable[..., Tensor]
"""From ids, positions, cache, plan and the rows that are read to hidden states after the last norm."""
Step = Callable[..., tuple[Tensor, Tensor]]
"""What a :class:`Layer` is to its caller."""


def fuse_stack(ops: Backend[Tensor], embedding: InputEmbedding, layers: Sequence[Layer], norm: Norm) -> Stack | None:
    """The whole stack in one call, if it is one that a unit describes and the backend claims it."""
    if DECODER not in ops.capabilities().fused_units:
        return None
    unit = decoder_unit(embedding, layers, norm)
    return ops.fuse(unit) if unit is not None else None


def fuse_layers(ops: Backend[Tensor], layers: Sequence[Layer]) -> list[Step]:
    """The layers, each as one call where the backend claims it, else with its MLP as one where it claims that."""
    claimed = ops.capabilities().fused_units
    return [
        (_fused(ops, layer) if LAYER in claimed else None) or _with_fused_mlp(ops, layer, claimed) for layer in layers
    ]


def _fused(ops: Backend[Tensor], layer: Layer) -> Step | None:
    unit = layer_unit(layer)
    return ops.fuse(unit) if unit is not None else None


def _with_fused_mlp(ops: Backend[Tensor], layer: Layer, claimed: Sequence[str]) -> Step:
    if (
        MLP not in claimed
        or not isinstance(layer.mlp, GatedMLP)
        or not isinstance(layer, (DecoderLayer, ParallelLayer))
    ):
        return layer
    return replace(layer, mlp=ops.fuse(mlp_unit(layer.mlp)) or layer.mlp)


def mlp_unit(mlp: GatedMLP) -> FusableUnit:
    """A gated MLP."""
    weights = {"gate_up": mlp.gate_up.weight, "down": mlp.down.weight}
    return FusableUnit(MLP, {"activation": mlp.activation}, weights, {})


def layer_unit(layer: Layer) -> FusableUnit | None:
    """A decoder layer, or ``None`` for one that does more than a unit can say."""
    if not isinstance(layer, DecoderLayer) or layer.attention_out_norm or layer.mlp_out_norm:
        return None
    attention, spec, mlp = layer.attention, layer.attention.spec, layer.mlp
    if not isinstance(attention, Attention) or attention.sinks is not None or attention.sharpen is not None:
        return None
    if attention.norm_last or spec.chunked:
        return None
    norms = {
        "input_norm": layer.input_norm,
        "post_norm": layer.post_norm,
        **({"q_norm": attention.q_norm, "k_norm": attention.k_norm} if attention.q_norm else {}),
    }
    described = {role: norm for role, norm in norms.items() if isinstance(norm, RMSNorm)}
    if len(described) < len(norms) or len({norm.eps for norm in described.values()}) > 1:
        return None
    if not isinstance(mlp, GatedMLP) or attention.softcap is not None or layer.residual_scale != 1.0:
        return None
    config = {
        "activation": mlp.activation,
        "eps": described["input_norm"].eps,
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
        "gate_up": mlp.gate_up.weight,
        "down": mlp.down.weight,
    }
    return FusableUnit(LAYER, config, weights, {role: norm.weight for role, norm in described.items()})


def decoder_unit(embedding: InputEmbedding, layers: Sequence[Layer], norm: Norm) -> FusableUnit | None:
    """The whole stack, from token ids to normalised hidden states; ``None`` where any part is more than a unit says."""
    if not embedding.plain or not isinstance(norm, RMSNorm):
        return None
    table = embedding.tokens
    config: dict[str, Any] = {"dtype": table.dtype, "eps": norm.eps, "num_layers": len(layers)}
    weights: dict[str, Weight] = {"embedding": table.weight}
    vectors: dict[str, Tensor] = {"norm": norm.weight}
    for index, layer in enumerate(layers):
        unit, prefix = layer_unit(layer), f"layers.{index}."
        if unit is None:
            return None
        config.update((prefix + role, value) for role, value in unit.config.items())
        weights.update((prefix + role, weight) for role, weight in unit.weights.items())
        vectors.update((prefix + role, vector) for role, vector in unit.vectors.items())
    return FusableUnit(DECODER, config, weights, vectors)
