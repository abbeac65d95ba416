"""Calls of Hermes and Qwen: ``<tool_call>{"name": …, "arguments": …}</tool_call>``, one after another.

Source: the chat templates of Nous Research's Hermes 2 Pro and of Qwen 2.5 and Qwen 3.
"""

from __future__ import annotations

from collections.abc import Mapping

from sagellm_core.front.grammar import GrammarWriter
from sagellm_core.front.parsing.source import Markers, Reading

from .json_calls import JSONCalls
from .schemas import Schema

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BREAK = "\n"
_OPENERS = Markers(_OPEN)


class Hermes(JSONCalls):
    """Objects between tags."""

    markers = (_OPEN, _CLOSE)

    @classmethod
    def forced(cls, tools: Mapping[str, Schema], writer: GrammarWriter, *, several: bool) -> str:
        """Blocks, each on lines of its own."""
        call = cls._call_of_any(tools, writer)
        block = writer.rule(f"{writer.literal(_OPEN, _BREAK)} {call} {writer.literal(_BREAK, _CLOSE)}")
        return f"{block} ({writer.literal(_BREAK)} {block})*" if several else block

    def _read_all(self) -> Reading[None]:
        while (yield from self._source.until(_OPENERS, self._tell)):
            yield from self._attempt(_OPEN, self._block())

    def _block(self) -> Reading[None]:
        yield from self._source.space()
        yield from self._objects((",",))
        yield from self._source.space()
        yield from self._source.take(_CLOSE)
