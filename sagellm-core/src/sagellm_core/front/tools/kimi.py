"""Calls of Kimi K2, between markers of their own: ``functions.name:0``, a marker, and the arguments.

What stands before the arguments is the call's id, and a conversation that goes on must give it back. Source: Moonshot's
guide to tool calls with Kimi K2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sagellm_core.front.grammar import GrammarWriter, alternatives
from sagellm_core.front.parsing.source import MalformedError, Markers, Reading

from .base import ToolParser
from .schemas import Schema
from .written import check_name

_ALL, _ALL_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_ONE, _ARGUMENTS, _ONE_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
_OPENERS = Markers(_ALL, _ONE)
_HEAD = re.compile(r"[^\s<]*")
_ID = re.compile(r"(?:functions\.)?(.*?)(?::\d+)?")


class Kimi(ToolParser):
    """Calls between markers, all of them between two more."""

    markers = (_ALL, _ALL_END, _ONE, _ARGUMENTS, _ONE_END)

    @classmethod
    def forced(cls, tools: Mapping[str, Schema], writer: GrammarWriter, *, several: bool) -> str:
        """Calls with a number each, as the model counts them."""
        for name in tools:
            check_name(name, _HEAD, "function")
        number = writer.rule("/[0-9]{1,3}/")
        calls = [
            f"{writer.literal(_ONE, f'functions.{name}:')} {number} {writer.literal(_ARGUMENTS)}"
            f" {writer.schema(schema)} {writer.literal(_ONE_END)}"
            for name, schema in tools.items()
        ]
        call = writer.rule(alternatives(calls))
        return f"{writer.literal(_ALL)} {call}{'+' if several else ''} {writer.literal(_ALL_END)}"

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
        head = yield from source.run(_HEAD)
        yield from source.space()
        yield from source.take(_ARGUMENTS)
        yield from source.space()
        found = _ID.fullmatch(head)
        if found is None:
            raise MalformedError
        yield from self._call(found[1], head)
