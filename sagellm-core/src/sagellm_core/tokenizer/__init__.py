"""Tokenizers and chat templates, read from a ``tokenizer.json`` or out of a GGUF file.

Knows nothing of requests or models.
"""

from __future__ import annotations

from .chat import ChatTemplates
from .load import load_tokenizer
from .tokenizer import Tokenizer

__all__ = ["ChatTemplates", "Tokenizer", "load_tokenizer"]
