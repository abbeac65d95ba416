"""Granite 3: Llama's layers, with embeddings, scores, residual sums and logits each multiplied by a constant."""

from __future__ import annotations

from .base import DecoderModel


class Granite(DecoderModel):
    """``GraniteForCausalLM``."""
