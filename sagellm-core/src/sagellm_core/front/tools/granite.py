"""Calls of Granite 3 and Phi-4-mini: ``<|tool_call|>[{"name": …, "arguments": …}, …]``.

Phi closes the list with ``<|/tool_call|>``. Source: the chat template of IBM's Granite 3.1, and Microsoft's card of
Phi-4-mini-instruct.
"""

from __future__ import annotations

from collections.abc import Mapping

from sagellm_core.front.grammar import GrammarWriter
from sagellm_core.front.parsing.source import Markers, Reading

from .json_calls import JSONCalls
from .schemas import Schema

_OPEN, _CLOSE = "<|tool_call|>", "<|/tool_call|>"
_OPENERS = Markers(_OPEN)


class Granite(JSONCalls):
    """A list of objects behind a mark."""

    markers = (_OPEN, _CLOSE)

    @classmethod
    def forced(cls, tools: Mapping[str, Schema], writer: GrammarWriter, *, several: bool) -> str:
        """A list, closed where the vocabulary has what closes it."""
        call = cls._call_of_any(tools, writer)
        more = f"({writer.literal(', ')} {call})*" if several else ""
        close = writer.literal(_CLOSE) if writer.is_special(_CLOSE) else ""
        return f"{writer.literal(_OPEN, '[')} {call} {more} {writer.literal(']')} {close}"

    def _read_all(self) -> Reading[None]:
        while (yield from self._source.until(_OPENERS, self._tell)):
            yield from self._attempt(_OPEN, self._list())

    def _list(self) -> Reading[None]:
        source = self._source
        yield from source.space()
        if (yield from source.accept("[")):
            yield from self._array()
        else:
            yield from self._objects((",",))
        source.mark()
        yield from source.space()
        if not (yield from source.accept(_CLOSE)):
            source.back()
