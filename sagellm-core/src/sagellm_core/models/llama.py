"""Llama 2 and 3, and what shares their shape (SmolLM2, TinyLlama, Yi): the frame as it stands."""

from __future__ import annotations

from .base import DecoderModel


class Llama(DecoderModel):
    """``LlamaForCausalLM``."""
