"""Calls of Llama 3.1 and later in JSON: ``{"name": …, "parameters": …}`` on a line of its own.

``<|python_tag|>`` may stand before them, and a semicolon between them. Source: Meta's Llama 3.1 chat template.
"""

from __future__ import annotations

from collections.abc import Mapping

from sagellm_core.front.grammar import GrammarWriter
from sagellm_core.front.parsing.source import Markers, Reading

from .json_calls import JSONCalls
from .schemas import Schema

_TAG = "<|python_tag|>"
_OPENERS = Markers(_TAG, "{")


class Llama3JSON(JSONCalls):
    """Objects that nothing marks."""

    markers = (_TAG,)
    bare = True
    key = "parameters"

    @classmethod
    def forced(cls, tools: Mapping[str, Schema], writer: GrammarWriter, *, several: bool) -> str:
        """Objects with semicolons between them."""
        call = cls._call_of_any(tools, writer)
        return f"{call} ({writer.literal('; ')} {call})*" if several else call

    def _read_all(self) -> Reading[None]:
        while marker := (yield from self._source.until(_OPENERS, self._tell)):
            if marker == _TAG or self._at_line:
                yield from self._attempt(marker, self._calls(marker))
            else:
                self._tell(marker)

    def _calls(self, marker: str) -> Reading[None]:
        if marker == _TAG:
            yield from self._source.space()
        else:
            self._source.unread(marker)
        yield from self._objects((";", ","))
