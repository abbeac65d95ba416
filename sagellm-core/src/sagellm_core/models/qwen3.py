"""Qwen3: queries and keys are normalised per head; heads may be wider than the hidden size divided by their number."""

from __future__ import annotations

from sagellm_core.layers.attention import build_attention
from sagellm_core.layers.decoder import DecoderLayer
from sagellm_core.layers.mlp import build_mlp
from sagellm_core.layers.weights import Packer

from .base import DecoderModel


class Qwen3(DecoderModel):
    """``Qwen3ForCausalLM``."""

    def decoder_layer(self, pack: Packer, index: int) -> DecoderLayer:
        """One layer out of ``model.layers.{index}``."""
        config, name = self.config, f"model.layers.{index}"
        return DecoderLayer(
            input_norm=pack.norm(f"{name}.input_layernorm", config.hidden_size, config.norm_eps),
            attention=build_attention(
                pack,
                config,
                f"{name}.self_attn",
                index,
                self.rope,
                window=config.windows[index],
                qkv_bias=config.qkv_bias,
                out_bias=config.attention_out_bias,
                qk_norm=True,
            ),
            post_norm=pack.norm(f"{name}.post_attention_layernorm", config.hidden_size, config.norm_eps),
            mlp=build_mlp(pack, config, f"{name}.mlp"),
        )
