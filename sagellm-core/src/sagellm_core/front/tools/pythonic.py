"""Calls written as Python: ``[f(a=1, b="x"), g()]`` on a line of its own, as Llama 3.2 and 4 write them.

Arguments are told as JSON: literals are translated while they come. Source: Meta's prompt formats for Llama 3.2 and
Llama 4; the literals are those of the Python language reference.
"""

from __future__ import annotations

import json
import math
import re

from sagellm_core.front.parsing.source import MalformedError, Markers, Reading

from .base import ToolParser

MAX_DEPTH = 64
"""Lists within lists that an argument may have."""
_START, _END, _TAG = "<|python_start|>", "<|python_end|>", "<|python_tag|>"
_OPENERS = Markers(_START, _TAG, "[")
_FUNCTION = re.compile(r"[\w.\-]*")
_NAME = re.compile(r"\w*")
_SCALAR = re.compile(r"[\w.+\-]*")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_STOPS = {quote: re.compile(rf"[{quote}\\]") for quote in "'\""}
_HEX = re.compile(r"[0-9A-Fa-f]+")
_CONSTANTS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_ESCAPES = {"\n": "", "\\": "\\", "'": "'", '"': '"'} | dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))
_CODE_POINTS = {"x": 2, "u": 4, "U": 8}
_LONGEST_NUMBER = 400


class Pythonic(ToolParser):
    """A list of calls with keyword arguments."""

    markers = (_START, _END, _TAG)

    def _read_all(self) -> Reading[None]:
        while marker := (yield from self._source.until(_OPENERS, self._tell)):
            if marker != "[":
                yield from self._attempt(marker, self._marked())
            elif self._at_line:
                yield from self._attempt(marker, self._calls())
            else:
                self._tell(marker)

    def _marked(self) -> Reading[None]:
        source = self._source
        yield from source.space()
        yield from source.take("[")
        yield from self._calls()
        source.mark()
        yield from source.space()
        if not (yield from source.accept(_END)):
            source.back()

    def _calls(self) -> Reading[None]:
        source = self._source
        yield from source.space()
        while True:
            yield from self._one()
            source.mark()
            yield from source.space()
            if not (yield from source.accept(",")):
                break
            yield from source.space()
            if (yield from source.comes("]")):
                break
        yield from source.take("]")
        source.release()

    def _one(self) -> Reading[None]:
        source = self._source
        name = yield from source.run(_FUNCTION)
        yield from source.take("(")
        yield from source.space()
        if not name:
            raise MalformedError
        opening = "{"
        while not (yield from source.accept(")")):
            key = yield from source.run(_NAME)
            yield from source.space()
            yield from source.take("=")
            yield from source.space()
            if not key or (yield from source.comes("=")):
                raise MalformedError
            if opening == "{":
                self._begin(name)
            self._argue(f"{opening}{_quoted(key)}: ")
            opening = ", "
            yield from self._value(MAX_DEPTH)
            yield from source.space()
            if (yield from source.accept(",")):
                yield from source.space()
            elif not (yield from source.comes(")")):
                raise MalformedError
        if opening == "{":
            self._begin(name)
            self._argue(opening)
        self._argue("}")
        self._finish()

    # -- values -------------------------------------------------------------------------------------------------------

    def _value(self, depth: int) -> Reading[None]:
        opener = yield from self._source.peek()
        if not depth:
            raise MalformedError
        if opener in ("'", '"'):
            yield from self._string()
        elif opener == "[":
            yield from self._list("]", depth)
        elif opener == "(":
            yield from self._list(")", depth)
        elif opener == "{":
            yield from self._dictionary(depth)
        else:
            self._argue(_scalar((yield from self._source.run(_SCALAR))))

    def _list(self, closer: str, depth: int) -> Reading[None]:
        source = self._source
        yield from source.read()
        self._argue("[")
        yield from source.space()
        first = True
        while not (yield from source.accept(closer)):
            self._argue("" if first else ", ")
            first = False
            yield from self._value(depth - 1)
            yield from self._comma_or(closer)
        self._argue("]")

    def _dictionary(self, depth: int) -> Reading[None]:
        source = self._source
        yield from source.read()
        self._argue("{")
        yield from source.space()
        first = True
        while not (yield from source.accept("}")):
            self._argue("" if first else ", ")
            first = False
            yield from self._string()
            yield from source.space()
            yield from source.take(":")
            yield from source.space()
            self._argue(": ")
            yield from self._value(depth - 1)
            yield from self._comma_or("}")
        self._argue("}")

    def _comma_or(self, closer: str) -> Reading[None]:
        source = self._source
        yield from source.space()
        if (yield from source.accept(",")):
            yield from source.space()
        elif not (yield from source.comes(closer)):
            raise MalformedError

    def _string(self) -> Reading[None]:
        source = self._source
        quote = yield from source.read()
        if quote not in _STOPS:
            raise MalformedError
        self._argue('"')
        while True:
            stop = yield from source.up_to(_STOPS[quote], self._quote_plain)
            if stop == quote:
                break
            if not stop:
                raise MalformedError
            self._argue(_escaped((yield from self._escape())))
        self._argue('"')

    def _quote_plain(self, text: str) -> None:
        self._argue(_escaped(text))

    def _escape(self) -> Reading[str]:
        """What stands for the rest of an escape, its backslash having been read."""
        source = self._source
        character = yield from source.read()
        if not character:
            raise MalformedError
        if character in _ESCAPES:
            return _ESCAPES[character]
        if character in _CODE_POINTS:
            return (yield from self._code_point(_CODE_POINTS[character]))
        if character in "01234567":
            rest = ""
            while len(rest) < 2 and (yield from source.peek()) in tuple("01234567"):
                rest += yield from source.read()
            return chr(int(character + rest, 8))
        return "\\" + character

    def _code_point(self, digits: int) -> Reading[str]:
        text = ""
        for _ in range(digits):
            text += yield from self._source.read()
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


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """``text`` as it stands within a JSON string; halves of surrogate pairs as escapes, which may be made whole."""
    inner = json.dumps(text, ensure_ascii=False)[1:-1]
    return "".join(f"\\u{ord(one):04x}" if 0xD800 <= ord(one) < 0xE000 else one for one in inner)
