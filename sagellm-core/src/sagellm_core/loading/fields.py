"""Reading of untrusted mappings: each value is checked for its type; a refusal names the file, the key and the value.

Knows nothing of what the keys mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import corrupt, not_a_checkpoint

D = TypeVar("D")
_REQUIRED: Any = object()


class Fields:
    """Typed access to a mapping that came out of a file.

    Absent keys and nulls both give the default; without one, the key is required.
    """

    def __init__(self, source: Path | str, values: Mapping[str, Any]) -> None:
        self.source = source
        self.values = values

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise corrupt(self.source, f"{key} is missing")
            return default
        return value

    def integer(self, key: str, default: D = _REQUIRED, minimum: int = 1, maximum: int = 2**31) -> int | D:
        """A whole number within bounds."""
        value = self._get(key, default)
        if value is default:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise corrupt(self.source, f"{key} is {value!r}; it must be a whole number from {minimum} to {maximum}")
        return value

    def number(self, key: str, default: D = _REQUIRED, *, positive: bool = True) -> float | D:
        """A finite number."""
        value = self._get(key, default)
        if value is default:
            return default
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)
        if not fits or (positive and value <= 0):
            raise corrupt(self.source, f"{key} is {value!r}; it must be a {'positive ' if positive else ''}number")
        return float(value)

    def flag(self, key: str, default: D = _REQUIRED) -> bool | D:
        """True or false."""
        value = self._get(key, default)
        if value is default:
            return default
        if not isinstance(value, bool):
            raise corrupt(self.source, f"{key} is {value!r}; it must be true or false")
        return value

    def text(self, key: str, default: D = _REQUIRED) -> str | D:
        """A string."""
        value = self._get(key, default)
        if value is default:
            return default
        if not isinstance(value, str):
            raise corrupt(self.source, f"{key} is {value!r}; it must be a string")
        return value

    def integers(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """A list of whole numbers, or one alone."""
        value = self._get(key, default)
        items = [value] if isinstance(value, int) else value
        if not isinstance(items, (list, tuple)) or not all(type(item) is int and item >= 0 for item in items):
            raise corrupt(self.source, f"{key} is {value!r}; it must be a whole number or a list of them")
        return tuple(items)

    def table(self, key: str) -> Fields | None:
        """A nested mapping."""
        value = self._get(key, None)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise corrupt(self.source, f"{key} is {value!r}; it must be an object")
        return Fields(f"{self.source}: {key}", value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond what a float holds
        return False


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        SageLLMError: ``MODEL_NOT_FOUND`` when it is missing, ``INVALID_REQUEST`` when it is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise not_a_checkpoint(path, "no such file") from None
    except OSError as error:
        raise corrupt(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise corrupt(path, f"is not JSON: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that holds one object.

    Raises:
        SageLLMError: As :func:`read_json`, and when it holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise corrupt(path, f"holds a JSON {type(value).__name__}; it must hold an object")
    return value
