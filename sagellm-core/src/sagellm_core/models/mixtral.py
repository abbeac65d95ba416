"""Mixtral: Mistral's layers with experts in place of the MLP."""

from __future__ import annotations

from sagellm_core.layers.decoder import MLP
from sagellm_core.layers.experts import build_experts
from sagellm_core.layers.weights import Packer

from .base import DecoderModel, Names


class Mixtral(DecoderModel):
    """``MixtralForCausalLM``."""

    names = Names(mlp="block_sparse_moe")

    def experts(self, pack: Packer, name: str) -> MLP:
        """By the names that Mistral gave their projections."""
        return build_experts(pack, self.config, name, projections=("w1", "w3", "w2"))
