"""Calls of a model whose family is unknown: a JSON object or a list of them, by itself or in a fenced block.

For models that were told about tools by their template and were not trained on a form of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sagellm_core.front.grammar import GrammarWriter
from sagellm_core.front.parsing.source import MalformedError, Markers, Reading

from .json_calls import JSONCalls
from .schemas import Schema

_FENCE = "```"
_OPENERS = Markers(_FENCE, "{", "[")
_LANGUAGE = re.compile(r"[A-Za-z_]*")


class GenericJSON(JSONCalls):
    """Objects and lists that nothing marks but a line of their own."""

    bare = True

    @classmethod
    def forced(cls, tools: Mapping[str, Schema], writer: GrammarWriter, *, several: bool) -> str:
        """An object, or a list of them."""
        call = cls._call_of_any(tools, writer)
        if not several:
            return call
        more = f"({writer.literal(', ')} {call})*"
        return f"({call} | {writer.literal('[')} {call} {more} {writer.literal(']')})"

    def _read_all(self) -> Reading[None]:
        while marker := (yield from self._source.until(_OPENERS, self._tell)):
            if self._at_line:
                yield from self._attempt(marker, self._block() if marker == _FENCE else self._calls(marker))
            else:
                self._tell(marker)

    def _block(self) -> Reading[None]:
        source = self._source
        yield from source.run(_LANGUAGE)
        yield from source.space()
        yield from self._calls((yield from source.read()))
        yield from source.space()
        yield from source.take(_FENCE)

    def _calls(self, opener: str) -> Reading[None]:
        if opener == "[":
            yield from self._array()
        elif opener == "{":
            self._source.unread(opener)
            yield from self._objects((";", ","))
        else:
            raise MalformedError
