"""Qwen3: queries and keys are normalised per head; heads may be wider than the hidden size divided by their number."""

from __future__ import annotations

from sagellm_core.layers.attention import Attention, build_attention
from sagellm_core.layers.weights import Packer

from .base import DecoderModel


class Qwen3(DecoderModel):
    """``Qwen3ForCausalLM``."""

    def attention(self, pack: Packer, name: str, index: int) -> Attention:
        """Attention with norms of each head."""
        config = self.config
        return build_attention(
            pack,
            config,
            name,
            index,
            self.ropes[index],
            q_norm=pack.norm(f"{name}.q_norm", config.head_dim, config.norm_eps),
            k_norm=pack.norm(f"{name}.k_norm", config.head_dim, config.norm_eps),
        )
