"""What parsers of tool calls share: content around calls, calls told as they come, and the way back from what is none.

A call is told as soon as its name is known and its arguments begin. What breaks off before that was no call and is
content, markers included; what breaks off after it stands as far as it was told, and the rest is content. Whether a
function of that name exists, and whether its arguments are valid, is for the caller to find out, as with OpenAI's API.

Knows nothing of any family's form.
"""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from sagellm_core.front.grammar import GrammarWriter
from sagellm_core.front.parsing.json_text import read_string, read_value
from sagellm_core.front.parsing.pieces import Arguments, CallEnd, CallStart, Content
from sagellm_core.front.parsing.source import MalformedError, Reading, Tell
from sagellm_core.front.parsing.stage import Stage

from .schemas import Schema

MAX_NAME = 512
"""Longest name of a function that the contract knows."""


class ToolParser(Stage):
    """Finds a family's calls in a choice's text.

    White space around calls belongs to their form; all other text is content.

    Attributes:
        markers: Strings of the form that vocabularies have as special tokens; they must be part of the text.

    Args:
        schemas: For each function's name, the schema of its arguments: some forms write values without their kind.
    """

    markers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, schemas: Mapping[str, Schema] | None = None) -> None:
        super().__init__()
        self._schemas = schemas or {}
        self._blank: str | None = ""  # white space at the beginning or after a call; None within content
        self._begun = 0
        self._open = False
        self._line_begins = True

    @staticmethod
    def new_id() -> str:
        """An id for a call that the model gave none."""
        return f"call_{secrets.token_hex(12)}"

    @classmethod
    @abstractmethod
    def forced(cls, tools: Mapping[str, Schema], writer: GrammarWriter, *, several: bool) -> str:
        """An expression for calls of some tools, and nothing beside them.

        Args:
            tools: For each function's name, the schema of its arguments.
            writer: Takes further rules.
            several: There may be more than one call.

        Raises:
            SageLLMError: ``UNSUPPORTED`` for what the form cannot hold arguments to.
        """

    @abstractmethod
    def _read_all(self) -> Reading[None]:
        """Read up to the end."""

    def _read(self) -> Reading[None]:
        yield from self._read_all()
        if self._blank and not self._begun:
            self._say(Content(self._blank))

    # -- what is told -------------------------------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        """More content."""
        if self._blank is not None:
            self._blank += text
            if self._blank.isspace():
                return
            text, self._blank = self._blank, None
        self._line_begins = text.endswith("\n")
        self._say(Content(text))

    @property
    def _at_line(self) -> bool:
        """Whether what comes next begins a line."""
        return self._line_begins if self._blank is None else True

    def _begin(self, name: str, call_id: str | None = None) -> None:
        if not 0 < len(name) <= MAX_NAME:
            raise MalformedError
        self._source.release()
        self._blank = ""
        self._begun += 1
        self._open = True
        self._say(CallStart(name, call_id))

    def _argue(self, text: str) -> None:
        """More of a call's arguments."""
        if text:
            self._say(Arguments(text))

    def _finish(self) -> None:
        self._open = False
        self._say(CallEnd())

    # -- what is read -------------------------------------------------------------------------------------------------

    def _attempt(self, marker: str, calls: Reading[None]) -> Reading[None]:
        """Read calls; what turns out to be none is content, as is what follows a call that broke off.

        Args:
            marker: What was read already and made it look like a call.
            calls: Reads them. It may mark where it is, once it has told a call, as a place to go on from.
        """
        before = self._begun
        self._source.mark()
        try:
            yield from calls
        except MalformedError:
            if self._source.marked:
                self._source.back()
                if self._begun == before:
                    self._tell(marker)
            if self._open and (yield from self._source.peek()):
                self._finish()
        finally:
            self._source.release()

    def _call(self, name: str, call_id: str | None = None) -> Reading[None]:
        """Read arguments that begin here, and tell the call."""
        if not (yield from self._source.comes("{")):
            raise MalformedError
        self._begin(name, call_id)
        yield from read_value(self._source, self._argue)
        self._finish()

    def _arguments_of_object(self, tell: Tell) -> Reading[None]:
        """Read the arguments within a call that is an object; some models write them as a string, or as nothing."""
        source = self._source
        opener = yield from source.peek()
        if opener == '"':
            tell((yield from read_string(source)))
        elif opener in ("{", "["):
            yield from read_value(source, tell)
        else:
            scalar: list[str] = []
            yield from read_value(source, scalar.append)
            value = "".join(scalar)
            tell("{}" if value == "null" else value)
