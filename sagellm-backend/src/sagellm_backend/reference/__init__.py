"""The slow, readable backend: float32 by default, loops allowed, the truth that the others are tested against."""

from __future__ import annotations

from sagellm_backend.openmp import wait_briefly

wait_briefly()  # before anything here imports torch, and libgomp with it

from .backend import ReferenceBackend, create  # noqa: E402  see above

__all__ = ["ReferenceBackend", "create"]
