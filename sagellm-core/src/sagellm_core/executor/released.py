"""Memory that is given up is given back to the system, and what takes its place must be of the same shape.

Knows configurations; nothing of weights or backends.
"""

from __future__ import annotations

import ctypes
import gc
from dataclasses import fields

from sagellm_core.loading.config import ModelConfig
from sagellm_protocol.errors import ErrorCode, SageLLMError

_MAY_DIFFER = ("dtype", "eos_token_ids")
"""What changes no shape: the type that weights are stored in, and which tokens end an answer."""


def release_memory() -> None:
    """Collect what nobody holds, and have the C library return what it kept of it, where it offers that."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def refuse_other_shape(now: ModelConfig, wanted: ModelConfig) -> None:
    """Refuse weights that were made for another configuration.

    Raises:
        SageLLMError: ``INVALID_REQUEST``, naming each field that differs, with both values.
    """
    differing = [
        f"{field.name} {getattr(wanted, field.name)!r} instead of {getattr(now, field.name)!r}"
        for field in fields(ModelConfig)
        if field.name not in _MAY_DIFFER and getattr(wanted, field.name) != getattr(now, field.name)
    ]
    if differing:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"weights of another shape cannot take the place of these: {'; '.join(differing)}; start an engine of its"
            " own for that model",
            "model",
        )
