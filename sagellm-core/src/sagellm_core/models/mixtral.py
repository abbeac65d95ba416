"""Mixtral: Mistral's layers with experts in place of the MLP."""

from __future__ import annotations

from sagellm_core.layers.decoder import MLP, DecoderLayer
from sagellm_core.layers.experts import build_experts
from sagellm_core.layers.weights import Packer

from .base import DecoderModel

_PROJECTIONS = ("w1", "w3", "w2")


class Mixtral(DecoderModel):
    """``MixtralForCausalLM``."""

    def decoder_layer(self, pack: Packer, name: str, index: int) -> DecoderLayer:
        """Norm, attention, norm, experts."""
        return DecoderLayer(
            input_norm=self.norm(pack, f"{name}.input_layernorm"),
            attention=self.attention(pack, f"{name}.self_attn", index),
            post_norm=self.norm(pack, f"{name}.post_attention_layernorm"),
            mlp=self.mlp(pack, f"{name}.block_sparse_moe", index),
        )

    def mlp(self, pack: Packer, name: str, index: int) -> MLP:
        """Experts, by the names that Mistral gave their projections."""
        return build_experts(pack, self.config, name, projections=_PROJECTIONS)
