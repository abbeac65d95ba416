"""The slow, readable backend: float32 by default, loops allowed, the truth that the others are tested against."""

from __future__ import annotations

from .backend import ReferenceBackend, create

__all__ = ["ReferenceBackend", "create"]
