"""Qwen2 and Qwen2.5: biases on queries, keys and values, and a window on some layers where it is switched on."""

from __future__ import annotations

from .base import DecoderModel


class Qwen2(DecoderModel):
    """``Qwen2ForCausalLM``."""
