"""What all request bodies share: ``null`` means absent, unknown fields are refused, and so are known ones not offered.

Knows nothing of any body in particular.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from sagellm_gateway.errors import public
from sagellm_protocol import ErrorCode, SageLLMError

MODEL_ALIAS = "sage-default"
"""Stands for whichever model is served; what SAGE's clients ask for, and what a request that names no model gets."""


class Refused(NamedTuple):
    """A parameter that is understood and not offered."""

    harmless: tuple[Any, ...]
    """Values that ask for what is done anyway; accepted."""
    why: str
    """What is not offered, and what to do instead."""


class Body(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    refused: ClassVar[Mapping[str, Refused]] = {}
    """Parameters refused by name unless their value is harmless."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        refused = cls.refused
        return {
            name: given
            for name, given in value.items()
            if given is not None and not (name in refused and cls._settled(name, given))
        }

    @classmethod
    def _settled(cls, name: str, given: Any) -> bool:
        """Whether nothing is left to do about a field: it is one not offered, and its value asks for nothing."""
        rule = cls.refused[name]
        if any(type(given) is type(value) and given == value for value in rule.harmless):
            return True
        accepted = "".join(f", {value!r}" for value in rule.harmless)
        raise _Unsupported(name, f"{rule.why} (leave it out or give null{accepted}; got {_short(given)})")


class _Unsupported(ValueError):
    """A refusal on its way through pydantic, which keeps track of where in the body it happened."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(why)
        self.field = field


def known_types(*known: str) -> BeforeValidator:
    """Refuse an object of another ``type`` by that name, before its other fields are looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and isinstance(kind := value.get("type"), str) and kind not in known:
            raise _Unsupported("type", f"{_short(kind)} is not offered; this server takes {', '.join(known)}")
        return value

    return BeforeValidator(check)


AnyBody = TypeVar("AnyBody", bound=Body)


def parse(kind: type[AnyBody], data: bytes) -> AnyBody:
    """Read a request body.

    Raises:
        SageLLMError: ``INVALID_REQUEST``, or ``UNSUPPORTED`` for what is understood and not offered; names the field.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _explain(kind, error, "") from None


def read(kind: type[AnyBody], value: Any, where: str) -> AnyBody:
    """Read a part of a body that could have had another form; as :func:`parse`, with paths under ``where``."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _explain(kind, error, where) from None


def invalid(param: str, message: str) -> SageLLMError:
    """The error of a wrong value."""
    return SageLLMError(ErrorCode.INVALID_REQUEST, f"{param}: {message}", param)


def unsupported(param: str, message: str) -> SageLLMError:
    """The error of what is understood and not offered."""
    return SageLLMError(ErrorCode.UNSUPPORTED, f"{param}: {message}", param)


def _explain(kind: type[Body], error: ValidationError, prefix: str) -> SageLLMError:
    first = error.errors(include_url=False)[0]
    where = ".".join([*filter(None, [prefix]), *(str(part) for part in first["loc"])])
    refusal = first.get("ctx", {}).get("error")
    if isinstance(refusal, _Unsupported):
        path = ".".join(filter(None, (where, refusal.field)))
        return public(unsupported(path, str(refusal)), {})
    if first["type"] == "json_invalid":
        return SageLLMError(ErrorCode.INVALID_REQUEST, f"the body is not JSON: {first['ctx']['error']}")
    if not where and first["type"] == "model_type":
        return SageLLMError(ErrorCode.INVALID_REQUEST, f"the body must be a JSON object (got {_short(first['input'])})")
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        near = difflib.get_close_matches(where, kind.model_fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return SageLLMError(ErrorCode.INVALID_REQUEST, f"{where}: unknown parameter{hint}", where)
    return public(SageLLMError.from_validation(error, prefix), {})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
