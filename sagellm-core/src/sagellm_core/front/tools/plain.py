"""Arguments that a model writes as plain text, without quotes: the JSON they stand for, by the kinds they may be of.

Knows nothing of what stands around them.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from sagellm_core.front.parsing.json_text import quoted
from sagellm_core.front.parsing.python_text import read_python
from sagellm_core.front.parsing.source import MalformedError, Source

from .schemas import kind_of


def as_json(text: str, allowed: frozenset[str]) -> str:
    """JSON of a value: the first of JSON, Python's way to write it, and a string, that is of an allowed kind.

    A string is told from nothing else but by its kind, so that what is none of the others is one; where no string is
    allowed it is not what the schema asks for, and nothing is lost.

    Args:
        text: As the model wrote it.
        allowed: Kinds that the value may be of.
    """
    stripped = text.strip()
    for read in (_same, _from_python):
        written = read(stripped)
        if written is not None and _kind(written) in allowed - {"string"}:
            return written
    return quoted(text)


def _same(text: str) -> str | None:
    return text


def _from_python(text: str) -> str | None:
    source, parts = Source(), list[str]()
    source.feed(text)
    source.ended = True
    try:
        # Nothing waits for text that has ended.
        next(read_python(source, parts.append), None)
    except MalformedError:
        return None
    return "".join(parts) if source.exhausted else None


def _kind(text: str) -> str | None:
    try:
        value: Any = json.loads(text, parse_constant=_refuse)
        return kind_of(value)
    except (ValueError, OverflowError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
