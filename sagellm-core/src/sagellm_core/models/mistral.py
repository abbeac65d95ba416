"""Mistral: Llama's layers with a sliding attention window.

No biases; the window, where there is one, holds for every layer.
"""

from __future__ import annotations

from sagellm_core.layers.attention import build_attention
from sagellm_core.layers.decoder import DecoderLayer
from sagellm_core.layers.mlp import build_mlp
from sagellm_core.layers.weights import Packer

from .base import DecoderModel


class Mistral(DecoderModel):
    """``MistralForCausalLM``."""

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
            ),
            post_norm=pack.norm(f"{name}.post_attention_layernorm", config.hidden_size, config.norm_eps),
            mlp=build_mlp(pack, config, f"{name}.mlp"),
        )
