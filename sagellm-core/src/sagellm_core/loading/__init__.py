"""Loading: local files to a :class:`Checkpoint`, which is a configuration and raw tensors by Hugging Face's names.

Knows nothing of where files come from (:mod:`sagellm_core.store`), nor of devices: bytes are handed on as the file has
them.
"""

from __future__ import annotations

from .base import Checkpoint
from .checkpoint import LOAD_FORMATS, locate, open_checkpoint, read_config
from .config import ModelConfig, RopeConfig
from .dummy import DummyCheckpoint

__all__ = [
    "LOAD_FORMATS",
    "Checkpoint",
    "DummyCheckpoint",
    "ModelConfig",
    "RopeConfig",
    "locate",
    "open_checkpoint",
    "read_config",
]
