"""Python literals as models write them, read while they come and told as JSON.

Source: the literals of the Python language reference. Knows nothing of calls.
"""

from __future__ import annotations

import json
import math
import re

from .json_text import escaped
from .source import MalformedError, Reading, Source, Tell

MAX_DEPTH = 64
"""Lists within lists that a value may have."""
_SCALAR = re.compile(r"[\w.+\-]*")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_STOPS = {quote: re.compile(rf"[{quote}\\]") for quote in "'\""}
_HEX = re.compile(r"[0-9A-Fa-f]+")
_CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPES = {"\n": "", "\\": "\\", "'": "'", '"': '"'} | dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))
_CODE_POINTS = {"x": 2, "u": 4, "U": 8}
_LONGEST_NUMBER = 400


def read_python(source: Source, tell: Tell, depth: int = MAX_DEPTH) -> Reading[None]:
    """Read a literal; it is told as JSON as it comes.

    Raises:
        MalformedError: It is none, or the text ends within it.
    """
    opener = yield from source.peek()
    if not depth:
        raise MalformedError
    if opener in ("'", '"'):
        yield from _string(source, tell)
    elif opener == "[":
        yield from _list(source, tell, "]", depth)
    elif opener == "(":
        yield from _list(source, tell, ")", depth)
    elif opener == "{":
        yield from _dictionary(source, tell, depth)
    else:
        tell(_scalar((yield from source.run(_SCALAR))))


def _list(source: Source, tell: Tell, closer: str, depth: int) -> Reading[None]:
    yield from source.read()
    tell("[")
    yield from source.space()
    first = True
    while not (yield from source.accept(closer)):
        tell("" if first else ", ")
        first = False
        yield from read_python(source, tell, depth - 1)
        yield from _comma_or(source, closer)
    tell("]")


def _dictionary(source: Source, tell: Tell, depth: int) -> Reading[None]:
    yield from source.read()
    tell("{")
    yield from source.space()
    first = True
    while not (yield from source.accept("}")):
        tell("" if first else ", ")
        first = False
        yield from _string(source, tell)
        yield from source.space()
        yield from source.take(":")
        yield from source.space()
        tell(": ")
        yield from read_python(source, tell, depth - 1)
        yield from _comma_or(source, "}")
    tell("}")


def _comma_or(source: Source, closer: str) -> Reading[None]:
    yield from source.space()
    if (yield from source.accept(",")):
        yield from source.space()
    elif not (yield from source.comes(closer)):
        raise MalformedError


def _string(source: Source, tell: Tell) -> Reading[None]:
    quote = yield from source.read()
    if quote not in _STOPS:
        raise MalformedError
    tell('"')
    while True:
        stop = yield from source.up_to(_STOPS[quote], lambda text: tell(escaped(text)))
        if stop == quote:
            break
        if not stop:
            raise MalformedError
        tell(escaped((yield from _escape(source))))
    tell('"')


def _escape(source: Source) -> Reading[str]:
    """What stands for the rest of an escape, its backslash having been read."""
    character = yield from source.read()
    if not character:
        raise MalformedError
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character in _CODE_POINTS:
        return (yield from _code_point(source, _CODE_POINTS[character]))
    if character in "01234567":
        rest = ""
        while len(rest) < 2 and (yield from source.peek()) in tuple("01234567"):
            rest += yield from source.read()
        return chr(int(character + rest, 8))
    return "\\" + character


def _code_point(source: Source, digits: int) -> Reading[str]:
    text = ""
    for _ in range(digits):
        text += yield from source.read()
    if len(text) != digits or not _HEX.fullmatch(text) or int(text, 16) > 0x10FFFF:
        raise MalformedError
    return chr(int(text, 16))


def _scalar(token: str) -> str:
    """A number or a constant of Python as JSON."""
    if token in _CONSTANTS:
        return _CONSTANTS[token]
    if _NUMBER.fullmatch(token):
        return token
    if len(token) <= _LONGEST_NUMBER:
        # Python has more ways than JSON to write a number.
        for read in (_integer, float):
            try:
                value = read(token)
            except ValueError:
                continue
            if math.isfinite(value):
                return json.dumps(value)
    raise MalformedError


def _integer(token: str) -> int:
    return int(token, 0)
