"""Calls of DeepSeek V3, V3.1 and R1, between markers of their own.

V3 and R1 write ``function``, a separator, the name, and the arguments in a fenced block; V3.1 writes the name, the
separator and the arguments. Source: DeepSeek's chat templates.
"""

from __future__ import annotations

import re

from sagellm_core.front.parsing.source import MalformedError, Markers, Reading

from .base import ToolParser

_ALL, _ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_ONE, _ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"
_FENCE = "```"
_OPENERS = Markers(_ALL, _ONE)
_WORD = re.compile(r"[^\s<]*")
_LINE = re.compile(r"[^\n]*")


class DeepSeek(ToolParser):
    """Calls between markers, all of them between two more."""

    markers = (_ALL, _ALL_END, _ONE, _ONE_END, _SEPARATOR)

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
