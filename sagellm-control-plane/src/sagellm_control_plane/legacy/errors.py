"""Refusals of the manager: typed like all of ours, and of the built-in kinds that its callers catch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sagellm_protocol import ErrorCode, SageLLMError


class BadValue(SageLLMError, ValueError):
    """A value that cannot be; callers have always caught ``ValueError``."""

    def __init__(self, message: str, param: str | None = None, code: ErrorCode = ErrorCode.INVALID_REQUEST) -> None:
        super().__init__(code, message, param)


def not_yet(param: str, value: object, instead: str = "leave it out") -> SageLLMError:
    """The refusal of a value that is understood and cannot be honoured."""
    return SageLLMError(ErrorCode.UNSUPPORTED, f"{param}={value!r} is not supported yet; {instead}", param)


def refuse_other_than(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse by name what is given and not the default, for parameters of which only the default can be honoured.

    Raises:
        SageLLMError: ``UNSUPPORTED``.
    """
    for name, default in defaults.items():
        if given[name] != default:
            raise not_yet(name, given[name], f"leave it at {default!r}")
