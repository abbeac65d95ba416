"""Reasoning of Seed-OSS: ``<seed:think>…</seed:think>`` before the answer.

Source: the chat template of ByteDance's Seed-OSS.
"""

from __future__ import annotations

from .base import ReasoningParser


class SeedThink(ReasoningParser):
    """Between tags of its own."""

    opens, closes = "<seed:think>", "</seed:think>"
