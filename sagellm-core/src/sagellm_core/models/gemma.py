"""Gemma 1: Llama's layers; norms add one to their weights, embeddings are scaled, and the MLP's gate is GELU."""

from __future__ import annotations

from .base import DecoderModel


class Gemma(DecoderModel):
    """``GemmaForCausalLM``."""
