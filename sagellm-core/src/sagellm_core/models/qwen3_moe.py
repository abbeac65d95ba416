"""Qwen3-MoE: Qwen3's attention, and experts in most layers."""

from __future__ import annotations

from sagellm_core.layers.decoder import MLP
from sagellm_core.layers.experts import build_experts
from sagellm_core.layers.mlp import build_mlp
from sagellm_core.layers.weights import Packer

from .qwen3 import Qwen3


class Qwen3MoE(Qwen3):
    """``Qwen3MoeForCausalLM``."""

    def mlp(self, pack: Packer, name: str, index: int) -> MLP:
        """Experts, or an MLP in layers that have none."""
        config = self.config
        assert config.mixture is not None, "loading states it for this family"
        return build_experts(pack, config, name) if config.mixture.sparse[index] else build_mlp(pack, config, name)
