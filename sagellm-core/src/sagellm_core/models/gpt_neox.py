"""GPT-NeoX and Pythia: layer norms, attention and MLP side by side, a rotary embedding of part of each head.

Heads' queries, keys and values are stored head by head in one projection.
"""

from __future__ import annotations

from sagellm_core.layers.attention import build_attention
from sagellm_core.layers.decoder import DecoderLayer, Layer, ParallelLayer
from sagellm_core.layers.mlp import build_plain_mlp
from sagellm_core.layers.weights import Packer

from .base import DecoderModel, Names


class GPTNeoX(DecoderModel):
    """``GPTNeoXForCausalLM``."""

    layer_norms = True
    names = Names(
        "gpt_neox",
        "embed_in",
        norm="final_layer_norm",
        head="embed_out",
        derived=(".attention.bias", ".attention.masked_bias"),
    )

    def decoder_layer(self, pack: Packer, name: str, index: int) -> Layer:
        """Attention and MLP, each behind a norm of its own."""
        input_norm = self.norm(pack, f"{name}.input_layernorm")
        attention = build_attention(
            pack,
            self.config,
            f"{name}.attention",
            index,
            self.ropes[index],
            projections=["query_key_value"],
            out="dense",
        )
        mlp_norm = self.norm(pack, f"{name}.post_attention_layernorm")
        mlp = build_plain_mlp(pack, self.config, f"{name}.mlp", up="dense_h_to_4h", down="dense_4h_to_h")
        if self.config.parallel:
            return ParallelLayer(input_norm, attention, mlp, mlp_norm)
        return DecoderLayer(input_norm, attention, mlp_norm, mlp)
