"""Calls of DeepSeek V3, V3.1 and R1, between markers of their own.

V3 and R1 write ``function``, a separator, the name, and the arguments in a fenced block; V3.1 writes the name, the
separator and the arguments. Either is read of any; which one is written where a call is forced is the family's.
Source: DeepSeek's chat templates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from sagellm_core.front.grammar import GrammarWriter, alternatives
from sagellm_core.front.parsing.source import MalformedError, Markers, Reading

from .base import ToolParser
from .schemas import Schema
from .written import check_name

_ALL, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_ONE, _ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"
_FENCE = "```"
_OPENERS = Markers(_ALL, _ONE)
_WORD = re.compile(r"[^\s<]*")
_LINE = re.compile(r"[^\n]*")


class DeepSeek(ToolParser):
    """Calls between markers, all of them between two more.

    Attributes:
        before, after: What stands around a function's name.
        end: What stands after its arguments.
        between: What stands between calls.
    """

    markers = (_ALL, _ALL_END, _ONE, _ONE_END, _SEPARATOR)
    before: ClassVar[tuple[str, ...]] = ("function", _SEPARATOR)
    after: ClassVar[tuple[str, ...]] = ("\n", _FENCE, "json\n")
    end: ClassVar[tuple[str, ...]] = ("\n", _FENCE)
    between: ClassVar[str] = "\n"

    @classmethod
    def forced(cls, tools: Mapping[str, Schema], writer: GrammarWriter, *, several: bool) -> str:
        """Calls in the family's own form."""
        for name in tools:
            check_name(name, _WORD, "function")
        calls = [
            f"{writer.literal(_ONE, *cls.before, name, *cls.after)} {writer.schema(schema)}"
            f" {writer.literal(*cls.end, _ONE_END)}"
            for name, schema in tools.items()
        ]
        call = writer.rule(alternatives(calls))
        more = f"({writer.literal(cls.between)} {call})*" if several else ""
        return f"{writer.literal(_ALL)} {call} {more} {writer.literal(_ALL_END)}"

    def _read_all(self) -> Reading[None]:
        while marker := (yield from self._source.until(_OPENERS, self._tell)):
            yield from self._attempt(marker, self._calls(marker))

    def _calls(self, marker: str) -> Reading[None]:
        source = self._source
        if marker == _ONE:
            source.unread(marker)
        yield from source.space()
        while True:
            yield from source.take(_ONE)
            yield from self._one()
            yield from source.space()
            yield from source.take(_ONE_END)
            source.mark()
            yield from source.space()
            if not (yield from source.comes(_ONE)):
                break
        yield from source.take(_ALL_END)

    def _one(self) -> Reading[None]:
        source = self._source
        yield from source.space()
        head = yield from source.run(_WORD)
        yield from source.space()
        yield from source.take(_SEPARATOR)
        yield from source.space()
        if (yield from source.comes("{")):
            yield from self._call(head)
            return
        if head != "function":
            raise MalformedError
        name = yield from source.run(_LINE)
        yield from source.space()
        yield from source.take(_FENCE)
        yield from source.run(_WORD)
        yield from source.space()
        yield from self._call(name.strip())
        yield from source.space()
        yield from source.take(_FENCE)


class DeepSeekV31(DeepSeek):
    """Calls without a type and without fences."""

    before = ()
    after = (_SEPARATOR,)
    end = ()
    between = ""
