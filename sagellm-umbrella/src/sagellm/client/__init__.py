"""Clients of a running gateway, ours or any other that speaks OpenAI's API."""

from __future__ import annotations

from .aio import AsyncInferenceClient
from .sync import UnifiedInferenceClient

__all__ = ["AsyncInferenceClient", "UnifiedInferenceClient"]
