"""The default backend: fast torch on the processor, weights packed once, BF16 where the processor has it."""

from __future__ import annotations

from sagellm_backend.openmp import wait_briefly

wait_briefly()  # before anything here imports torch, and libgomp with it

from .backend import CpuBackend, create  # noqa: E402  see above

__all__ = ["CpuBackend", "create"]
