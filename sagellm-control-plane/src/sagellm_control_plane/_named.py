"""Making a policy or router by name: out of this package's own table, or from an installed distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeGuard, TypeVar

from sagellm_protocol import ErrorCode, SageLLMError, plugins

T = TypeVar("T")


def make(name: str, table: Mapping[str, Callable[[], T]], is_one: Callable[[object], TypeGuard[T]], what: str) -> T:
    """Call what ``name`` stands for.

    Args:
        name: A name of the table or of the entry-point group ``sagellm.policies``; the table wins.
        table: Our own.
        is_one: Whether what was made is of the kind that is wanted: one group holds both policies and routers.
        what: What to call it in errors.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for an unknown name, or for one that stands for something else.
    """
    maker = table.get(name)
    if maker is not None:
        return maker()
    others = plugins.installed(plugins.POLICIES)
    if name not in others:
        known = ", ".join(sorted({*table, *others}))
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"unknown {what} {name!r}; there are {known}")
    made = plugins.load(plugins.POLICIES, name)()
    if not is_one(made):
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"{name!r} of {plugins.POLICIES} makes a {type(made).__name__}, which is no {what};"
            f" there are {', '.join(sorted(table))}",
        )
    return made
