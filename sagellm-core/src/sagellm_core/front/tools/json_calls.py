"""Calls that are JSON objects: a name, and arguments under either of two names.

Knows nothing of what stands around them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

from sagellm_core.front.grammar import GrammarWriter, alternatives
from sagellm_core.front.parsing.json_text import read_string, read_value
from sagellm_core.front.parsing.source import MalformedError, Reading

from .base import ToolParser
from .schemas import Schema

ARGUMENTS = ("arguments", "parameters")
_KNOWN = frozenset({*ARGUMENTS, "name", "function", "type", "id"})
_OPENINGS = ("{", '"', "n")
"""Of an object, of one that is written as a string, and of ``null``."""


class _Call:
    """What is known of a call while its object is read."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.held: list[str] | None = None
        """Arguments that came before the name."""
        self.told = False


class JSONCalls(ToolParser):
    """Reads calls that are JSON objects.

    Attributes:
        bare: Whether nothing but its own shape tells a call from other JSON: then it must have a name and arguments,
            and nothing that calls do not have.
        key: What the family calls the arguments.
    """

    bare = False
    key: ClassVar[str] = "arguments"

    @classmethod
    def _call_of_any(cls, tools: Mapping[str, Schema], writer: GrammarWriter) -> str:
        """A rule for one object."""
        calls = []
        for name, schema in tools.items():
            quoted = json.dumps(name, ensure_ascii=False)
            head = '{"name": ' + quoted + f', "{cls.key}": '
            calls.append(f"{writer.literal(head)} {writer.schema(schema)}")
        close = writer.literal("}")
        return writer.rule(f"{alternatives(calls)} {close}")

    def _object(self) -> Reading[None]:
        """Read one object and tell it as a call.

        Raises:
            MalformedError: It is none.
        """
        call = _Call()
        yield from self._members(call)
        if not call.told:
            if call.name is None or self.bare:
                raise MalformedError
            self._begin(call.name)
            self._argue("{}")
            self._finish()

    def _objects(self, separators: tuple[str, ...]) -> Reading[None]:
        """Read an object, and those that follow it with nothing but white space and a separator between.

        Raises:
            MalformedError: The first of them is none; or a later one, which is left to be read as content.
        """
        source = self._source
        while True:
            yield from self._object()
            source.mark()
            yield from source.space()
            for separator in separators:
                if (yield from source.accept(separator)):
                    yield from source.space()
                    break
            if not (yield from source.comes("{")):
                source.back()
                return

    def _array(self) -> Reading[None]:
        """Read the rest of a list of calls, its bracket having been read.

        Raises:
            MalformedError: As :meth:`_objects`.
        """
        source = self._source
        yield from source.space()
        yield from self._objects((",",))
        yield from source.space()
        yield from source.take("]")

    def _members(self, call: _Call, *, within: bool = False) -> Reading[None]:
        source = self._source
        yield from source.take("{")
        yield from source.space()
        while not (yield from source.accept("}")):
            key = yield from read_string(source)
            yield from source.space()
            yield from source.take(":")
            yield from source.space()
            yield from self._member(call, key, within=within)
            yield from source.space()
            if (yield from source.accept(",")):
                yield from source.space()
            elif not (yield from source.comes("}")):
                raise MalformedError

    def _member(self, call: _Call, key: str, *, within: bool) -> Reading[None]:
        source = self._source
        if key == "function" and not within and (yield from source.comes("{")):
            # OpenAI's own form has the function within the call, once.
            yield from self._members(call, within=True)
        elif key in {"name", "function"} and call.name is None:
            call.name = yield from read_string(source)
            if call.held is not None:
                self._begin(call.name)
                self._argue("".join(call.held))
                self._finish()
                call.told = True
        elif key in ARGUMENTS and not call.told and call.held is None:
            if self.bare and (yield from source.peek()) not in _OPENINGS:
                raise MalformedError
            if call.name is None:
                call.held = []
                yield from self._arguments_of_object(call.held.append)
            else:
                self._begin(call.name)
                yield from self._arguments_of_object(self._argue)
                self._finish()
                call.told = True
        elif self.bare and key not in _KNOWN:
            raise MalformedError
        else:
            yield from read_value(source, _drop)


def _drop(text: str) -> None:
    """What is no part of a call."""
