"""Llama 4, its text models: three layers that attend within chunks to one without positions that sees everything.

Where there are positions, queries and keys are normalised after rotation; where there are none, queries of far
positions are sharpened. Experts are given their shares of a token. Images are not offered: a checkpoint that reads them
runs for text, and the rest of it is left where it is.
"""

from __future__ import annotations

import math

from sagellm_core.layers.attention import Attention, Sharpening, build_attention
from sagellm_core.layers.decoder import MLP
from sagellm_core.layers.experts import build_experts
from sagellm_core.layers.norm import RMSNorm
from sagellm_core.layers.weights import Packer

from .base import DecoderModel, Names


class Llama4(DecoderModel):
    """``Llama4ForCausalLM``."""

    names = Names(mlp="feed_forward")

    def attention(self, pack: Packer, name: str, index: int) -> Attention:
        """Attention within chunks, normalised; or to everything, sharpened."""
        config, rope = self.config, self.ropes[index]
        if rope is None:
            return build_attention(pack, config, name, index, rope, sharpen=self._sharpening(pack))
        ones = pack.ops.from_host([1.0] * config.head_dim, pack.dtype)
        norm = RMSNorm(pack.ops, ones, config.norm_eps) if config.qk_norm else None
        return build_attention(pack, config, name, index, rope, q_norm=norm, k_norm=norm, norm_last=True)

    def _sharpening(self, pack: Packer) -> Sharpening | None:
        temperature = self.config.temperature
        if temperature is None:
            return None
        steps = self.config.max_position_embeddings // temperature.every + 1
        factors = [1 + temperature.scale * math.log1p(step) for step in range(steps)]
        # In the type of queries, which are rounded to it anyway.
        return Sharpening(pack.ops.from_host(factors, pack.dtype), temperature.every)

    def experts(self, pack: Packer, name: str) -> MLP:
        """With the shared one."""
        return build_experts(pack, self.config, name, router="router", halves=True, shared="shared_expert")


class Llama4OfImages(Llama4):
    """``Llama4ForConditionalGeneration``, for text."""

    names = Names(
        root="language_model.model",
        head="language_model.lm_head",
        mlp="feed_forward",
        beside=("vision_model.", "multi_modal_projector."),
    )
