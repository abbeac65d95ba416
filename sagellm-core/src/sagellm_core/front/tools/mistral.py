"""Calls of Mistral: ``[TOOL_CALLS][{"name": …, "arguments": …}, …]``, or ``[TOOL_CALLS]name[ARGS]{…}`` one by one.

The second form may give the call's id: ``[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}``. Source: ``mistral-common``, whose
tokenizers of version 3 write the first form, and those from version 11 on the second.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping

from sagellm_core.front.grammar import GrammarWriter, alternatives
from sagellm_core.front.parsing.source import MalformedError, Markers, Reading

from .json_calls import JSONCalls
from .schemas import Schema
from .written import check_name

_OPEN, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_OPENERS = Markers(_OPEN)
_NAME = re.compile(r"[^\s\[{]*")
_ALPHABET = string.ascii_letters + string.digits


class Mistral(JSONCalls):
    """A list of objects, or names with arguments."""

    markers = (_OPEN, _ID, _ARGUMENTS)

    @staticmethod
    def new_id() -> str:
        """Nine letters and digits: its templates refuse any other."""
        return "".join(secrets.choice(_ALPHABET) for _ in range(9))

    @classmethod
    def forced(cls, tools: Mapping[str, Schema], writer: GrammarWriter, *, several: bool) -> str:
        """The second form where the vocabulary has its token, else the first."""
        if writer.is_special(_ARGUMENTS):
            for name in tools:
                check_name(name, _NAME, "function")
            calls = [f"{writer.literal(_OPEN, name, _ARGUMENTS)} {writer.schema(tools[name])}" for name in tools]
            call = writer.rule(alternatives(calls))
            return f"{call}+" if several else call
        call = cls._call_of_any(tools, writer)
        more = f"({writer.literal(', ')} {call})*" if several else ""
        return f"{writer.literal(_OPEN, '[')} {call} {more} {writer.literal(']')}"

    def _read_all(self) -> Reading[None]:
        while (yield from self._source.until(_OPENERS, self._tell)):
            yield from self._attempt(_OPEN, self._calls())

    def _calls(self) -> Reading[None]:
        source = self._source
        yield from source.space()
        if (yield from source.accept("[")):
            yield from self._array()
        elif (yield from source.comes("{")):
            yield from self._objects((",",))
        else:
            yield from self._named()

    def _named(self) -> Reading[None]:
        source = self._source
        name = yield from source.run(_NAME)
        call_id = None
        if (yield from source.accept(_ID)):
            call_id = yield from source.run(_NAME)
            if not call_id:
                raise MalformedError
        if (yield from source.comes("[")):
            yield from source.take(_ARGUMENTS)
        yield from source.space()
        yield from self._call(name, call_id)
