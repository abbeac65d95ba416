"""OLMo 2: each half of a layer is normalised as it ends; queries and keys over all their heads together."""

from __future__ import annotations

from sagellm_core.layers.attention import Attention, build_attention
from sagellm_core.layers.decoder import DecoderLayer
from sagellm_core.layers.norm import AcrossHeads
from sagellm_core.layers.weights import Packer

from .base import DecoderModel


class Olmo2(DecoderModel):
    """``Olmo2ForCausalLM``."""

    def decoder_layer(self, pack: Packer, name: str, index: int) -> DecoderLayer:
        """Attention, norm; MLP, norm."""
        return DecoderLayer(
            input_norm=None,
            attention=self.attention(pack, f"{name}.self_attn", index),
            attention_out_norm=self.norm(pack, f"{name}.post_attention_layernorm"),
            post_norm=None,
            mlp=self.mlp(pack, f"{name}.mlp", index),
            mlp_out_norm=self.norm(pack, f"{name}.post_feedforward_layernorm"),
        )

    def attention(self, pack: Packer, name: str, index: int) -> Attention:
        """Attention with norms across heads."""
        config = self.config
        of_q, of_k = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        return build_attention(
            pack,
            config,
            name,
            index,
            self.ropes[index],
            q_norm=AcrossHeads(pack.norm(f"{name}.q_norm", of_q, config.norm_eps)),
            k_norm=AcrossHeads(pack.norm(f"{name}.k_norm", of_k, config.norm_eps)),
        )
