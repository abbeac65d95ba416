"""Twisted: Llama's layers with normalised heads, and modules by names of its own. For tests, and as an example."""

from __future__ import annotations

from typing import Any

from sagellm_core.layers.attention import Attention, build_attention
from sagellm_core.layers.weights import Packer
from sagellm_core.models.base import DecoderModel, Names


class Twisted(DecoderModel):
    """``TwistedForCausalLM``: a checkpoint in which Qwen3's modules have names of their own."""

    names = Names(root="twist", embedding="tokens", layers="blocks", norm="last", head="out", mlp="feed")

    def attention(self, pack: Packer, name: str, index: int) -> Attention:
        """Attention with norms of each head."""
        config = self.config
        size, eps = config.head_dim, config.norm_eps
        norms: dict[str, Any] = {part: pack.norm(f"{name}.{part}", size, eps) for part in ("q_norm", "k_norm")}
        return build_attention(pack, config, name, index, self.ropes[index], **norms)
