"""Parsers of reasoning, by the names that an operator may give them.

A new family is a file and a line of :data:`REASONING_PARSERS`, and a line of the signs in ``front/form.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

from sagellm_core.front.tools.harmony import Harmony

from .base import ReasoningParser
from .mistral import MistralThink
from .think import Think

REASONING_PARSERS: Mapping[str, type[ReasoningParser] | type[Harmony]] = {
    # One form for both: its channels tell reasoning, calls and answer apart.
    "harmony": Harmony,
    "mistral": MistralThink,
    "think": Think,
}

__all__ = ["REASONING_PARSERS", "ReasoningParser"]
