"""Gemma 3, its text models: Gemma 2's layers with normalised heads, five with a window to one without.

Layers with a window have a rotary embedding of their own. Images are not offered.
"""

from __future__ import annotations

from sagellm_core.layers.attention import Attention, build_attention
from sagellm_core.layers.weights import Packer

from .gemma2 import Gemma2


class Gemma3(Gemma2):
    """``Gemma3ForCausalLM``."""

    def attention(self, pack: Packer, name: str, index: int) -> Attention:
        """Attention with norms of each head."""
        config = self.config
        size, eps, offset = config.head_dim, config.norm_eps, config.norm_offset
        return build_attention(
            pack,
            config,
            name,
            index,
            self.ropes[index],
            q_norm=pack.norm(f"{name}.q_norm", size, eps, offset=offset),
            k_norm=pack.norm(f"{name}.k_norm", size, eps, offset=offset),
        )
