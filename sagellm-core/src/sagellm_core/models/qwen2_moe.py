"""Qwen1.5-MoE and Qwen2-MoE: Qwen2's layers, most with experts, of which one is shared by all tokens behind a gate."""

from __future__ import annotations

from sagellm_core.layers.decoder import MLP
from sagellm_core.layers.experts import build_experts
from sagellm_core.layers.weights import Packer

from .base import DecoderModel


class Qwen2MoE(DecoderModel):
    """``Qwen2MoeForCausalLM``."""

    def experts(self, pack: Packer, name: str) -> MLP:
        """With the shared one."""
        return build_experts(pack, self.config, name, shared="shared_expert", shared_gate="shared_expert_gate")
