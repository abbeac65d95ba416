"""Finding implementations by entry point, and saying what is installed when a name is unknown.

Knows the names of the groups and nothing of what is behind them.
"""

from __future__ import annotations

import inspect
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from typing_extensions import get_protocol_members

from .errors import ErrorCode, SageLLMError

BACKENDS = "sagellm.backends"
ENGINES = "sagellm.engines"
CONTROL_PLANES = "sagellm.control_planes"
MODELS = "sagellm.models"
LAUNCHERS = "sagellm.launchers"
POLICIES = "sagellm.policies"

GROUPS = (BACKENDS, ENGINES, CONTROL_PLANES, MODELS, LAUNCHERS, POLICIES)

_PROVIDED_BY = {
    BACKENDS: "isagellm-backend",
    ENGINES: "isagellm-core",
    CONTROL_PLANES: "isagellm-control-plane",
    MODELS: "isagellm-core",
    LAUNCHERS: "isagellm-control-plane",
    POLICIES: "isagellm-control-plane",
}


def installed(group: str) -> dict[str, EntryPoint]:
    """Entry points of ``group`` by name, without importing any.

    Raises:
        SageLLMError: ``CONFLICT`` when two distributions claim one name with different objects.
    """
    names = sorted({point.name for point in _points(group)})
    return {name: _find(group, name) for name in names}


def load(group: str, name: str) -> Any:
    """Import and return what ``name`` stands for in ``group``.

    Raises:
        SageLLMError: ``NOT_INSTALLED`` when the name is unknown, listing those that are known; or when what it stands
            for cannot be imported, with the reason. ``CONFLICT`` when two distributions claim the name.
    """
    point = _find(group, name)
    try:
        return point.load()
    except SageLLMError:
        raise
    except Exception as error:
        raise SageLLMError(
            ErrorCode.NOT_INSTALLED,
            f"{name!r} of {group} is installed ({_origin(point)}) but cannot be loaded:"
            f" {type(error).__name__}: {error}",
        ) from error


def make(group: str, name: str, interface: type, *arguments: Any, **options: Any) -> Any:
    """Load the factory ``name`` of ``group``, call it, and see that what it makes has the members of ``interface``.

    Raises:
        SageLLMError: As :func:`load`; ``NOT_INSTALLED`` naming the members that are missing; what the factory raises.
    """
    made = load(group, name)(*arguments, **options)
    # Looked up without being read: a property may well refuse before its object has started.
    missing = sorted(member for member in get_protocol_members(interface) if not _has(made, member))
    if missing:
        raise SageLLMError(
            ErrorCode.NOT_INSTALLED,
            f"{name!r} of {group} makes a {type(made).__name__}, which is no {interface.__name__}:"
            f" it lacks {', '.join(missing)}",
        )
    return made


def _has(made: object, member: str) -> bool:
    absent = object()
    return inspect.getattr_static(made, member, absent) is not absent


def _find(group: str, name: str) -> EntryPoint:
    """The one entry point of a name; what others of its group are like does not matter."""
    points = _points(group)
    claims = {point.value: point for point in points if point.name == name}
    if not claims:
        known = ", ".join(sorted({point.name for point in points}))
        hint = f"none is installed: pip install {_PROVIDED_BY.get(group, 'a provider')}"
        raise SageLLMError(
            ErrorCode.NOT_INSTALLED, f"nothing named {name!r} in {group}; {f'installed: {known}' if known else hint}"
        )
    if len(claims) > 1:
        raise SageLLMError(
            ErrorCode.CONFLICT,
            f"several installed distributions provide {name!r} in {group}:"
            f" {' and '.join(_origin(point) for point in claims.values())}; uninstall all but one of them",
        )
    return next(iter(claims.values()))


def _points(group: str) -> tuple[EntryPoint, ...]:
    """Entry points of ``group``; read again where the search path, or what is installed on it, has changed."""
    return tuple(_scan(tuple((place, _changed_at(place)) for place in sys.path)).select(group=group))


@lru_cache(maxsize=1)
def _scan(places: tuple[tuple[str, int], ...]) -> Any:
    # Every installed distribution's files are read for it: 15 ms where there are a hundred, and a start asks ten times.
    return entry_points()


def _changed_at(place: str) -> int:
    try:
        return Path(place).stat().st_mtime_ns
    except OSError:
        return 0


def _origin(point: EntryPoint) -> str:
    return f"{point.value} from {point.dist.name}" if point.dist is not None else point.value
