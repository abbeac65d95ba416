"""How loading refuses: one sentence that names the file and what is wrong with it.

Knows nothing of any file format.
"""

from __future__ import annotations

from os import PathLike

from sagellm_protocol.errors import ErrorCode, SageLLMError


def corrupt(path: str | PathLike[str], what: str) -> SageLLMError:
    """A file that cannot be read as what it claims to be."""
    return SageLLMError(ErrorCode.INVALID_REQUEST, f"{path}: {what}", "model")


def unsupported(path: str | PathLike[str], what: str) -> SageLLMError:
    """A file that is sound but asks for something that is not offered."""
    return SageLLMError(ErrorCode.UNSUPPORTED, f"{path}: {what}", "model")


def not_a_checkpoint(path: str | PathLike[str], what: str) -> SageLLMError:
    """A place that exists but holds no model."""
    return SageLLMError(ErrorCode.MODEL_NOT_FOUND, f"{path}: {what}", "model")
