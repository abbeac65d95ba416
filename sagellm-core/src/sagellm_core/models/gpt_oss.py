"""GPT-OSS: attention with sinks and a window on every other layer, and experts with bounded gates and biases.

Experts' weights are MXFP4 as published, or plain as fine-tunes have them.
"""

from __future__ import annotations

from sagellm_core.layers.attention import Attention, build_attention
from sagellm_core.layers.decoder import MLP
from sagellm_core.layers.experts import build_experts
from sagellm_core.layers.weights import Packer
from sagellm_protocol.devices import DType

from .base import DecoderModel


class GptOss(DecoderModel):
    """``GptOssForCausalLM``."""

    def attention(self, pack: Packer, name: str, index: int) -> Attention:
        """Attention with a learned sink a head."""
        sinks = pack.vector(f"{name}.sinks", self.config.num_heads, DType.FLOAT32)
        return build_attention(pack, self.config, name, index, self.ropes[index], sinks=sinks)

    def experts(self, pack: Packer, name: str) -> MLP:
        """With biases."""
        return build_experts(pack, self.config, name, router="router", bias=True)
