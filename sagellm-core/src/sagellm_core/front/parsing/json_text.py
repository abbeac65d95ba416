"""JSON as models write it, read while it comes.

Brackets and strings are followed, so that no marker within a string ends anything; whether what is between them is
valid is for the reader of the JSON to find out. Knows nothing of calls.
"""

from __future__ import annotations

import json
import re

from .source import MalformedError, Reading, Source, Tell

_STRUCTURE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')
_SCALAR = re.compile(r"[^\s,{}\[\]]*")
_CLOSERS = {"{": "}", "[": "]"}


def read_string(source: Source) -> Reading[str]:
    """Read a string and decode it.

    Raises:
        MalformedError: It is none.
    """
    parts = ['"']
    yield from source.take('"')
    yield from _rest_of_string(source, parts.append)
    try:
        # Raw line breaks within strings are no JSON, and models write them.
        value = json.loads("".join(parts), strict=False)
    except ValueError:
        raise MalformedError from None
    return _whole(value)


def read_value(source: Source, tell: Tell) -> Reading[None]:
    """Read a value; its text is told as it comes.

    Raises:
        MalformedError: It is none, or the text ends within it.
    """
    opener = yield from source.peek()
    if opener in _CLOSERS:
        yield from _nested(source, tell)
    elif opener == '"':
        yield from source.read()
        tell('"')
        yield from _rest_of_string(source, tell)
    else:
        scalar = yield from source.run(_SCALAR)
        if not scalar:
            raise MalformedError
        tell(scalar)


def quoted(text: str) -> str:
    """``text`` as a JSON string."""
    return f'"{escaped(text)}"'


def escaped(text: str) -> str:
    """``text`` as it stands within a JSON string; halves of surrogate pairs as escapes, which may be made whole."""
    inner = json.dumps(text, ensure_ascii=False)[1:-1]
    return "".join(f"\\u{ord(one):04x}" if 0xD800 <= ord(one) < 0xE000 else one for one in inner)


def _nested(source: Source, tell: Tell) -> Reading[None]:
    waiting: list[str] = []
    while True:
        found = yield from source.up_to(_STRUCTURE, tell)
        tell(found)
        if found == '"':
            yield from _rest_of_string(source, tell)
        elif found in _CLOSERS:
            waiting.append(_CLOSERS[found])
        elif not found or waiting.pop() != found:
            raise MalformedError
        elif not waiting:
            return


def _rest_of_string(source: Source, tell: Tell) -> Reading[None]:
    while True:
        found = yield from source.up_to(_IN_STRING, tell)
        tell(found)
        if found == '"':
            return
        escaped = yield from source.read()
        if not escaped:
            raise MalformedError
        tell(escaped)


def _whole(text: str) -> str:
    """``text`` without halves of surrogate pairs, which no encoding carries."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
