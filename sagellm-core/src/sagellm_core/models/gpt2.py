"""GPT-2: learned positions, layer norms, an MLP without a gate; projections are stored transposed.

The causal mask that its checkpoints hold is not needed.
"""

from __future__ import annotations

from sagellm_core.layers.attention import build_attention
from sagellm_core.layers.decoder import DecoderLayer
from sagellm_core.layers.mlp import build_plain_mlp
from sagellm_core.layers.weights import Packer

from .base import DecoderModel, Names


class GPT2(DecoderModel):
    """``GPT2LMHeadModel``."""

    names = Names("transformer", "wte", "h", "ln_f", positions="wpe", derived=(".attn.bias", ".attn.masked_bias"))
    layer_norms = True

    def decoder_layer(self, pack: Packer, name: str, index: int) -> DecoderLayer:
        """Layer norm, attention, layer norm, MLP."""
        config = self.config
        return DecoderLayer(
            input_norm=self.norm(pack, f"{name}.ln_1"),
            attention=build_attention(pack, config, f"{name}.attn", index, None, projections=["c_attn"], out="c_proj"),
            post_norm=self.norm(pack, f"{name}.ln_2"),
            mlp=build_plain_mlp(pack, config, f"{name}.mlp", up="c_fc", down="c_proj"),
        )
