"""Qwen1.5-MoE and Qwen2-MoE: Qwen2's layers, most with experts, of which one is shared by all tokens behind a gate."""

from __future__ import annotations

from sagellm_core.layers.decoder import MLP
from sagellm_core.layers.experts import build_experts
from sagellm_core.layers.mlp import build_mlp
from sagellm_core.layers.weights import Packer

from .base import DecoderModel


class Qwen2MoE(DecoderModel):
    """``Qwen2MoeForCausalLM``."""

    def mlp(self, pack: Packer, name: str, index: int) -> MLP:
        """Experts, or an MLP in layers that have none."""
        config = self.config
        assert config.mixture is not None, "loading states it for this family"
        if not config.mixture.sparse[index]:
            return build_mlp(pack, config, name)
        return build_experts(pack, config, name, shared="shared_expert", shared_gate="shared_expert_gate")
