"""SmolLM3: Llama's layers, every fourth of which has no rotary embedding."""

from __future__ import annotations

from .base import DecoderModel


class SmolLM3(DecoderModel):
    """``SmolLM3ForCausalLM``."""
