"""Command R and R7B (Cohere 1 and 2): layer norms without bias, attention and MLP side by side behind one norm.

Rotary pairs are neighbours; in Cohere 2 only layers with a window have them.
"""

from __future__ import annotations

from sagellm_core.layers.attention import Attention, build_attention
from sagellm_core.layers.decoder import ParallelLayer
from sagellm_core.layers.norm import Norm
from sagellm_core.layers.weights import Packer

from .base import DecoderModel


class Cohere(DecoderModel):
    """``CohereForCausalLM`` and ``Cohere2ForCausalLM``."""

    def decoder_layer(self, pack: Packer, name: str, index: int) -> ParallelLayer:
        """Attention and MLP behind one norm."""
        return ParallelLayer(
            input_norm=self.norm(pack, f"{name}.input_layernorm"),
            attention=self.attention(pack, f"{name}.self_attn", index),
            mlp=self.mlp(pack, f"{name}.mlp", index),
        )

    def norm(self, pack: Packer, name: str) -> Norm:
        """A layer norm without bias."""
        return pack.layer_norm(name, self.config.hidden_size, self.config.norm_eps, bias=False)

    def attention(self, pack: Packer, name: str, index: int) -> Attention:
        """Attention, its heads normalised where the configuration says so."""
        config, rope = self.config, self.ropes[index]
        if not config.qk_norm:
            return build_attention(pack, config, name, index, rope)
        q_norm = pack.head_norm(f"{name}.q_norm", config.num_heads, config.head_dim, config.norm_eps)
        k_norm = pack.head_norm(f"{name}.k_norm", config.num_kv_heads, config.head_dim, config.norm_eps)
        return build_attention(pack, config, name, index, rope, q_norm=q_norm, k_norm=k_norm)
