"""Falcon: layer norms, one key/value head for all queries or a few, attention and MLP side by side.

Its three forms (7B, 40B and later, 1B) differ in norms and in how a fused projection is stored. Positions are rotary;
attention biases (alibi) are not offered.
"""

from __future__ import annotations

from sagellm_core.layers.attention import build_attention
from sagellm_core.layers.decoder import DecoderLayer, Layer, ParallelLayer
from sagellm_core.layers.mlp import build_plain_mlp
from sagellm_core.layers.weights import Packer

from .base import DecoderModel, Names


class Falcon(DecoderModel):
    """``FalconForCausalLM``."""

    names = Names("transformer", "word_embeddings", "h", "ln_f")
    layer_norms = True

    def decoder_layer(self, pack: Packer, name: str, index: int) -> Layer:
        """Attention and MLP behind one norm, a norm each, or one after the other."""
        attention = build_attention(
            pack,
            self.config,
            f"{name}.self_attention",
            index,
            self.ropes[index],
            projections=["query_key_value"],
            out="dense",
        )
        mlp = build_plain_mlp(pack, self.config, f"{name}.mlp", up="dense_h_to_4h", down="dense_4h_to_h")
        if not self.config.parallel:
            input_norm = self.norm(pack, f"{name}.input_layernorm")
            return DecoderLayer(input_norm, attention, self.norm(pack, f"{name}.post_attention_layernorm"), mlp)
        if self.config.parallel_norms == 1:
            return ParallelLayer(self.norm(pack, f"{name}.input_layernorm"), attention, mlp)
        return ParallelLayer(self.norm(pack, f"{name}.ln_attn"), attention, mlp, self.norm(pack, f"{name}.ln_mlp"))
