"""Calls written in tags, each argument by itself: what the families that do so share.

A value stands there as plain text. The tool's schema says what it is: a string, or else the JSON that the text is.

Knows nothing of any family's tags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from sagellm_core.front.grammar import GrammarWriter, alternatives
from sagellm_core.front.parsing.json_text import escaped, quoted
from sagellm_core.front.parsing.source import MalformedError, Markers, Reading, Tell

from .base import ToolParser
from .plain import as_json
from .schemas import KINDS, Schema, kinds
from .written import Argument, arguments_one_by_one, as_plain, check_name

_BREAK = "\n"
_NAME = re.compile(r"[^\s<>\"(){}\[\]]*")
_KEY = re.compile(r"[^\n<>\"]*")
_WRITABLE = re.compile(r"[^\s<>\"]+( [^\s<>\"]+)*")


class XMLCalls(ToolParser):
    """Reads and writes calls in tags.

    Attributes:
        block: Around calls, where something stands around them.
        one_a_block: There is one call in a block.
        call: Before a function's name, after it, and after its arguments.
        argument: Before an argument's name, between it and the value, and after the value. White space may stand at the
            line breaks of the second, and they may be missing.
        lines: Values stand on lines of their own.
    """

    block: ClassVar[tuple[str, str] | None] = None
    one_a_block: ClassVar[bool] = False
    call: ClassVar[tuple[str, str, str]]
    argument: ClassVar[tuple[str, str, str]]
    lines: ClassVar[bool] = False

    @classmethod
    def forced(cls, tools: Mapping[str, Schema], writer: GrammarWriter, *, several: bool) -> str:
        """Calls, each tag on a line of its own."""
        call = writer.rule(alternatives([cls._one_of(name, schema, writer) for name, schema in tools.items()]))
        if cls.block is None:
            return _again(call, writer) if several else call
        before, after = writer.literal(cls.block[0], _BREAK), writer.literal(_BREAK, cls.block[1])
        if cls.one_a_block:
            block = writer.rule(f"{before} {call} {after}")
            return _again(block, writer) if several else block
        return f"{before} {_again(call, writer) if several else call} {after}"

    @classmethod
    def _one_of(cls, name: str, schema: Schema, writer: GrammarWriter) -> str:
        before, after, ends = cls.call
        check_name(name, _NAME, "function")
        told = [cls._argument_of(one, schema, writer) for one in arguments_one_by_one(name, schema)]
        return " ".join([writer.literal(before, name, after, _BREAK), *told, writer.literal(ends)])

    @classmethod
    def _argument_of(cls, argument: Argument, schema: Schema, writer: GrammarWriter) -> str:
        before, between, ends = cls.argument
        check_name(argument.name, _WRITABLE, "parameter")
        head = writer.literal(before, argument.name, *between.partition(_BREAK), _BREAK if cls.lines else "")
        value = as_plain(argument, schema, writer, ends=ends, line=cls.lines)
        whole = writer.rule(f"{head} {value} {writer.literal(_BREAK)}")
        return whole if argument.required else f"{whole}?"

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read_all(self) -> Reading[None]:
        openers = Markers(self.call[0], *(self.block or ())[:1])
        while marker := (yield from self._source.until(openers, self._tell)):
            yield from self._attempt(marker, self._calls(marker))

    def _calls(self, marker: str) -> Reading[None]:
        source, opener = self._source, self.call[0]
        if marker == opener:
            source.unread(marker)
        yield from source.space()
        while True:
            yield from source.take(opener)
            yield from self._one()
            source.mark()
            yield from source.space()
            if not (yield from source.comes(opener)):
                break
        # A model that forgets how a block begins still ends it.
        if self.block is not None:
            yield from source.take(self.block[1])
        else:
            source.back()

    def _one(self) -> Reading[None]:
        source = self._source
        yield from source.space()
        name = yield from source.run(_NAME)
        yield from source.take(self.call[1])
        yield from source.space()
        # A name alone may be part of a text about calls.
        if not (yield from self._comes_any(self.argument[0], self.call[2])):
            raise MalformedError
        self._begin(name)
        schema = self._schemas.get(name, {})
        told = False
        while not (yield from source.accept(self.call[2])):
            source.mark()  # what is no argument is content, whole
            yield from source.take(self.argument[0])
            key = yield from source.run(_KEY)
            for part in self.argument[1].split(_BREAK):
                yield from source.space()
                yield from source.take(part)
            source.release()
            self._argue(f"{', ' if told else '{'}{quoted(key.strip())}: ")
            told = True
            yield from self._value(key.strip(), schema)
            yield from source.space()
        self._argue("}" if told else "{}")
        self._finish()

    def _value(self, key: str, schema: Schema) -> Reading[None]:
        properties = schema.get("properties")
        stated = properties.get(key) if isinstance(properties, Mapping) else None
        allowed = kinds(stated, schema) or KINDS
        if self.lines:
            yield from self._source.accept(_BREAK)
        if allowed == {"string"}:
            self._argue('"')
            yield from self._text(lambda text: self._argue(escaped(text)))
            self._argue('"')
            return
        parts: list[str] = []
        try:
            yield from self._text(parts.append)
        except MalformedError:
            self._argue("".join(parts))  # what breaks off stands as far as it came
            raise
        self._argue(as_json("".join(parts), allowed))

    def _text(self, tell: Tell) -> Reading[None]:
        """Read a value and what ends it: a mark that nothing of the form follows is part of the value."""
        source, ends = self._source, self.argument[2]
        marks = Markers(_BREAK + ends, ends) if self.lines else Markers(ends)
        while True:
            mark = yield from source.until(marks, tell)
            if mark is None:
                raise MalformedError
            source.mark()
            yield from source.space()
            ended = yield from self._comes_any(self.argument[0], self.call[2], partly=True)
            source.back()
            if ended:
                return
            tell(mark)

    def _comes_any(self, *literals: str, partly: bool = False) -> Reading[bool]:
        for literal in literals:
            if (yield from self._source.comes(literal, partly=partly)):
                return True
        return False


def _again(expression: str, writer: GrammarWriter) -> str:
    return f"{expression} ({writer.literal(_BREAK)} {expression})*"
