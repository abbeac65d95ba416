"""Reasoning of DeepSeek R1, Qwen 3, SmolLM3 and many others: ``<think>…</think>`` before the answer.

The template may have opened it. Source: DeepSeek's and Qwen's chat templates.
"""

from __future__ import annotations

from .base import ReasoningParser


class Think(ReasoningParser):
    """Between tags named ``think``."""

    opens, closes = "<think>", "</think>"
