"""OpenAI-compatible servers of others as engines: :mod:`.engine` is one, :mod:`.kinds` what each server offers."""

from __future__ import annotations

from .engine import ForeignEngine

__all__ = ["ForeignEngine"]
