"""Parsers of tool calls, by the names that an operator may give them.

A new family is a file and a line of :data:`TOOL_PARSERS`, and a line of the signs in ``front/form.py`` that choose it.
"""

from __future__ import annotations

from collections.abc import Mapping

from .base import ToolParser
from .deepseek import DeepSeek
from .generic import GenericJSON
from .harmony import Harmony
from .hermes import Hermes
from .llama3_json import Llama3JSON
from .mistral import Mistral
from .pythonic import Pythonic

TOOL_PARSERS: Mapping[str, type[ToolParser]] = {
    "deepseek": DeepSeek,
    "harmony": Harmony,
    "hermes": Hermes,
    "json": GenericJSON,
    "llama3_json": Llama3JSON,
    "mistral": Mistral,
    "pythonic": Pythonic,
}

__all__ = ["TOOL_PARSERS", "Harmony", "ToolParser"]
