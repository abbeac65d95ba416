"""DeepSeek V2 and V3 (and R1): latent attention, and experts in groups beside one that all tokens share.

Layers that predict further tokens (MTP) are left where they are.
"""

from __future__ import annotations

from sagellm_core.layers.decoder import MLP, SelfAttention
from sagellm_core.layers.experts import build_experts
from sagellm_core.layers.latent import build_latent_attention
from sagellm_core.layers.weights import Packer

from .base import DecoderModel


class DeepSeek(DecoderModel):
    """``DeepseekV2ForCausalLM`` and ``DeepseekV3ForCausalLM``."""

    def attention(self, pack: Packer, name: str, index: int) -> SelfAttention:
        """Attention to one short vector a token."""
        return build_latent_attention(pack, self.config, name, index, self.ropes[index])

    def experts(self, pack: Packer, name: str) -> MLP:
        """With the shared ones."""
        return build_experts(pack, self.config, name, shared="shared_experts")
