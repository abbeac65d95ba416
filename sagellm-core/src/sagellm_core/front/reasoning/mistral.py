"""Reasoning of Mistral's Magistral: ``[THINK]…[/THINK]`` before the answer.

Source: ``mistral-common``.
"""

from __future__ import annotations

from .base import ReasoningParser


class MistralThink(ReasoningParser):
    """Between Mistral's own tokens."""

    opens, closes = "[THINK]", "[/THINK]"
