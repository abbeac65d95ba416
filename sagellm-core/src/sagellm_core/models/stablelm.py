"""StableLM: layer norms, a rotary embedding of part of each head, and by choice parallel halves and normalised heads.

A norm of heads has a weight for each head.
"""

from __future__ import annotations

from sagellm_core.layers.attention import Attention, build_attention
from sagellm_core.layers.decoder import Layer, ParallelLayer
from sagellm_core.layers.norm import HeadNorm
from sagellm_core.layers.weights import Packer

from .base import DecoderModel


class StableLM(DecoderModel):
    """``StableLmForCausalLM``."""

    layer_norms = True

    def decoder_layer(self, pack: Packer, name: str, index: int) -> Layer:
        """Attention and MLP behind one norm, or one after the other."""
        if not self.config.parallel:
            return super().decoder_layer(pack, name, index)
        return ParallelLayer(
            input_norm=self.norm(pack, f"{name}.input_layernorm"),
            attention=self.attention(pack, f"{name}.self_attn", index),
            mlp=self.mlp(pack, f"{name}.mlp", index),
        )

    def attention(self, pack: Packer, name: str, index: int) -> Attention:
        """Attention, its heads normalised where the configuration says so."""
        config, rope = self.config, self.ropes[index]
        if not config.qk_norm:
            return build_attention(pack, config, name, index, rope)
        q_norm = self._head_norm(pack, f"{name}.q_layernorm", config.num_heads)
        k_norm = self._head_norm(pack, f"{name}.k_layernorm", config.num_kv_heads)
        return build_attention(pack, config, name, index, rope, q_norm=q_norm, k_norm=k_norm)

    def _head_norm(self, pack: Packer, name: str, heads: int) -> HeadNorm:
        each = [f"{name}.norms.{head}" for head in range(heads)]
        stacked = f"{name}.weight" in pack  # as GGUF files have it
        return pack.head_norm(name if stacked else each, heads, self.config.head_dim, self.config.norm_eps)
