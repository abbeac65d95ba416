"""DeepSeek V2 and V3 (and R1): latent attention, and experts in groups beside one that all tokens share.

Layers that predict further tokens (MTP) are left where they are.
"""

from __future__ import annotations

from sagellm_core.layers.decoder import MLP, SelfAttention
from sagellm_core.layers.experts import build_experts
from sagellm_core.layers.latent import build_latent_attention
from sagellm_core.layers.mlp import build_mlp
from sagellm_core.layers.weights import Packer

from .base import DecoderModel


class DeepSeek(DecoderModel):
    """``DeepseekV2ForCausalLM`` and ``DeepseekV3ForCausalLM``."""

    def attention(self, pack: Packer, name: str, index: int) -> SelfAttention:
        """Attention to one short vector a token."""
        return build_latent_attention(pack, self.config, name, index, self.ropes[index])

    def mlp(self, pack: Packer, name: str, index: int) -> MLP:
        """Experts, or an MLP in the first layers."""
        config = self.config
        assert config.mixture is not None, "loading states it for this family"
        if not config.mixture.sparse[index]:
            return build_mlp(pack, config, name)
        return build_experts(pack, config, name, shared="shared_experts")
