"""Mistral: Llama's layers, with a sliding attention window where the configuration has one."""

from __future__ import annotations

from .base import DecoderModel


class Mistral(DecoderModel):
    """``MistralForCausalLM``."""
