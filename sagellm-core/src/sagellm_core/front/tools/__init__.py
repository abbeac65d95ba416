"""Parsers of tool calls, by the names that an operator may give them.

A new family is a file and a line of :data:`TOOL_PARSERS`, and a line of the signs in ``front/form.py`` that choose it.
"""

from __future__ import annotations

from collections.abc import Mapping

from .base import ToolParser
from .deepseek import DeepSeek, DeepSeekV31
from .generic import GenericJSON
from .glm import GLM
from .granite import Granite
from .harmony import Harmony
from .hermes import Hermes
from .kimi import Kimi
from .llama3_json import Llama3JSON
from .minimax import MiniMax
from .mistral import Mistral
from .pythonic import Pythonic
from .qwen3_coder import Qwen3Coder
from .seed_oss import SeedOSS

TOOL_PARSERS: Mapping[str, type[ToolParser]] = {
    "deepseek": DeepSeek,
    "deepseek_v31": DeepSeekV31,
    "glm": GLM,
    "granite": Granite,
    "harmony": Harmony,
    "hermes": Hermes,
    "json": GenericJSON,
    "kimi": Kimi,
    "llama3_json": Llama3JSON,
    "minimax": MiniMax,
    "mistral": Mistral,
    "pythonic": Pythonic,
    "qwen3_coder": Qwen3Coder,
    "seed_oss": SeedOSS,
}

__all__ = ["TOOL_PARSERS", "Harmony", "ToolParser"]
