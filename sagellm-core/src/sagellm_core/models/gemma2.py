"""Gemma 2: each half of a layer is normalised as it begins and as it ends; scores and logits are bounded.

Every other layer sees a window alone. Gemma 1's scaled embeddings and norms are the configuration's.
"""

from __future__ import annotations

from sagellm_core.layers.decoder import DecoderLayer
from sagellm_core.layers.weights import Packer

from .base import DecoderModel


class Gemma2(DecoderModel):
    """``Gemma2ForCausalLM``."""

    def decoder_layer(self, pack: Packer, name: str, index: int) -> DecoderLayer:
        """Norm, attention, norm; norm, MLP, norm."""
        return DecoderLayer(
            input_norm=self.norm(pack, f"{name}.input_layernorm"),
            attention=self.attention(pack, f"{name}.self_attn", index),
            attention_out_norm=self.norm(pack, f"{name}.post_attention_layernorm"),
            post_norm=self.norm(pack, f"{name}.pre_feedforward_layernorm"),
            mlp=self.mlp(pack, f"{name}.mlp", index),
            mlp_out_norm=self.norm(pack, f"{name}.post_feedforward_layernorm"),
        )
