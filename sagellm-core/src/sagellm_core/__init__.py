"""One inference engine: models, loading, KV cache, batching, sampling and the offline ``LLM``.

Importing it brings in neither torch nor a tokenizer; names are fetched when they are first used. Knows nothing of other
engines, HTTP APIs for users, or tenants.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import create
    from .llm import LLM

__version__ = "0.6.0"

_HOME = {"LLM": "llm", "create": "engine"}

__all__ = ["LLM", "__version__", "create"]


def __getattr__(name: str) -> Any:
    """Fetch a public name from its module."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    """Public names, fetched or not."""
    return sorted({*globals(), *__all__})
