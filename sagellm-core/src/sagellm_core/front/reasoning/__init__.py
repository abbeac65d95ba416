"""Parsers of reasoning, by the names that an operator may give them.

A new family is a file and a line of :data:`REASONING_PARSERS`, and a line of the signs in ``front/form.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

from sagellm_core.front.tools.harmony import Harmony

from .base import ReasoningParser
from .granite import Granite, ThinkResponse
from .mistral import MistralThink
from .seed_oss import SeedThink
from .think import Think

REASONING_PARSERS: Mapping[str, type[ReasoningParser] | type[Harmony]] = {
    "granite": Granite,
    # One form for both: its channels tell reasoning, calls and answer apart.
    "harmony": Harmony,
    "mistral": MistralThink,
    "seed_oss": SeedThink,
    "think": Think,
    "think_response": ThinkResponse,
}

__all__ = ["REASONING_PARSERS", "ReasoningParser"]
