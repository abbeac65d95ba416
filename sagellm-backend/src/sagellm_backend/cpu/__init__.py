"""The default backend: fast torch on the processor, weights packed once, BF16 where the processor has it."""

from __future__ import annotations

from .backend import CpuBackend, create

__all__ = ["CpuBackend", "create"]
