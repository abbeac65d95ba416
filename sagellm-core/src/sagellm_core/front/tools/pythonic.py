"""Calls written as Python: ``[f(a=1, b="x"), g()]`` on a line of its own, as Llama 3.2 and 4 write them.

Arguments are told as JSON: literals are translated while they come. Source: Meta's prompt formats for Llama 3.2 and
Llama 4; the literals are those of the Python language reference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sagellm_core.front.grammar import GrammarWriter, alternatives
from sagellm_core.front.parsing.json_text import quoted
from sagellm_core.front.parsing.python_text import read_python
from sagellm_core.front.parsing.source import MalformedError, Markers, Reading

from .base import ToolParser
from .schemas import Schema
from .written import arguments_one_by_one, as_python, check_name

_START, _END, _TAG = "<|python_start|>", "<|python_end|>", "<|python_tag|>"
_OPENERS = Markers(_START, _TAG, "[")
_FUNCTION = re.compile(r"[\w.\-]*")
_NAME = re.compile(r"\w*")
_COMMA = ", "
_NOTHING = '""'


class Pythonic(ToolParser):
    """A list of calls with keyword arguments."""

    markers = (_START, _END, _TAG)

    @classmethod
    def forced(cls, tools: Mapping[str, Schema], writer: GrammarWriter, *, several: bool) -> str:
        """A list; arguments in the schema's order."""
        call = writer.rule(alternatives([_one_of(name, schema, writer) for name, schema in tools.items()]))
        more = f"({writer.literal(_COMMA)} {call})*" if several else ""
        return f"{writer.literal('[')} {call} {more} {writer.literal(']')}"

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
            self._argue(f"{opening}{quoted(key)}: ")
            opening = ", "
            yield from read_python(source, self._argue)
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


def _one_of(name: str, schema: Schema, writer: GrammarWriter) -> str:
    """A call of one function, with commas between those of its arguments that are there."""
    check_name(name, _FUNCTION, "function")
    first = later = _NOTHING  # what may come from an argument on where none was written before it, and where one was
    for argument in reversed(arguments_one_by_one(name, schema)):
        check_name(argument.name, _NAME, "parameter")
        told = f"{writer.literal(argument.name, '=')} {as_python(argument, schema, writer)} {later}"
        rest = writer.rule(told)
        first = rest if argument.required else f"({rest} | {first})"
        later = writer.rule(f"{writer.literal(_COMMA)} {rest}" + ("" if argument.required else f" | {later}"))
    return f"{writer.literal(name, '(')} {first} {writer.literal(')')}"
