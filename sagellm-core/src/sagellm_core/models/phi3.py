"""Phi-3, 3.5 and 4: Llama's layers with query, key and value in one projection, and gate and up in another."""

from __future__ import annotations

from sagellm_core.layers.attention import Attention, build_attention
from sagellm_core.layers.decoder import MLP
from sagellm_core.layers.mlp import build_mlp
from sagellm_core.layers.weights import Packer

from .base import DecoderModel


class Phi3(DecoderModel):
    """``Phi3ForCausalLM``."""

    def attention(self, pack: Packer, name: str, index: int) -> Attention:
        """Attention out of a fused projection."""
        return build_attention(pack, self.config, name, index, self.ropes[index], projections=["qkv_proj"])

    def mlp(self, pack: Packer, name: str, index: int) -> MLP:
        """A gated MLP out of a fused projection."""
        return build_mlp(pack, self.config, name, gate_up=["gate_up_proj"])
