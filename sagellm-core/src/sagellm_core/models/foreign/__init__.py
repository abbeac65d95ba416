"""Architectures that have no file here, through the modelling code of ``transformers`` with attention of ours.

Slower than a file over the shared layers, and otherwise the same to whoever runs it: keys and values are paged, so that
batches, chunks, prefix hits and preemption work as they do elsewhere. Imported only where such a model is loaded:
``transformers`` takes seconds.
"""

from __future__ import annotations

from .model import Foreign

__all__ = ["Foreign"]
