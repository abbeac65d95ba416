"""Qwen3-MoE: Qwen3's attention, and experts in most layers."""

from __future__ import annotations

from .qwen3 import Qwen3


class Qwen3MoE(Qwen3):
    """``Qwen3MoeForCausalLM``."""
