"""Text that comes in pieces, for routines that read it as if all of it were there already.

A routine is a generator: it yields where it needs more text, and goes on when there is some. What it finds therefore
depends on the characters alone, never on where one piece ended and the next began.

Knows nothing of what is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

Reading = Generator[None, None, T]
"""A routine on its way to a result; each ``yield`` waits for more text, or for its end."""
Tell = Callable[[str], None]
"""Takes text as it comes."""

_SPACE = re.compile(r"\s*")


class MalformedError(Exception):
    """What comes is not what the form asks for."""


class Markers:
    """Strings to look for; none of them may begin another. Where one ends another, the longer is found."""

    def __init__(self, *literals: str) -> None:
        self._literals = literals
        self._pattern = re.compile("|".join(map(re.escape, literals)))
        self._first = re.compile("[" + "".join({re.escape(literal[0]) for literal in literals}) + "]")
        self._longest = max(map(len, literals))

    def find(self, text: str, at: int) -> re.Match[str] | None:
        """The first one from ``at`` on."""
        return self._pattern.search(text, at)

    def held(self, text: str, at: int) -> int:
        """How many characters at the end of ``text``, from ``at`` on, may be the beginning of one."""
        begin = self._first.search(text, max(at, len(text) - self._longest + 1))
        if begin is not None:
            for start in range(begin.start(), len(text)):
                if any(literal.startswith(text[start:]) for literal in self._literals):
                    return len(text) - start
        return 0


class Source:
    """The text, and how far it has been read.

    Attributes:
        ended: No more will come; nothing that reads yields any more.
    """

    def __init__(self) -> None:
        self.ended = False
        self._text = ""
        self._at = 0
        self._mark: int | None = None

    def feed(self, text: str) -> None:
        """Add a piece; what was read is forgotten, but for what a mark keeps."""
        keep = self._at if self._mark is None else min(self._mark, self._at)
        self._text = self._text[keep:] + text
        self._at -= keep
        if self._mark is not None:
            self._mark -= keep

    @property
    def exhausted(self) -> bool:
        """Whether all text that has come was read."""
        return self._at == len(self._text)

    # -- going back ---------------------------------------------------------------------------------------------------

    @property
    def marked(self) -> bool:
        """Whether there is a place to go back to."""
        return self._mark is not None

    def mark(self) -> None:
        """Make this the place to go back to."""
        self._mark = self._at

    def release(self) -> None:
        """There is no way back any more."""
        self._mark = None

    def back(self) -> None:
        """Go back to the mark, which is then no more."""
        assert self._mark is not None
        self._at, self._mark = self._mark, None

    def unread(self, text: str) -> None:
        """Go back over ``text``, which was read last."""
        self._at -= len(text)
        assert self._text.startswith(text, self._at)

    # -- reading ------------------------------------------------------------------------------------------------------

    def peek(self) -> Reading[str]:
        """The next character, not read yet; empty at the end."""
        while self._at == len(self._text) and not self.ended:
            yield
        return self._text[self._at : self._at + 1]

    def read(self) -> Reading[str]:
        """The next character; empty at the end."""
        character = yield from self.peek()
        self._at += len(character)
        return character

    def space(self) -> Reading[str]:
        """Read white space, if there is any; what there was."""
        return (yield from self.run(_SPACE))

    def run(self, pattern: re.Pattern[str]) -> Reading[str]:
        """Read as much as ``pattern`` matches: any number of characters of one kind."""
        while True:
            found = pattern.match(self._text, self._at)
            end = self._at if found is None else found.end()
            if end < len(self._text) or self.ended:
                text, self._at = self._text[self._at : end], end
                return text
            yield

    def comes(self, literal: str, *, partly: bool = False) -> Reading[bool]:
        """Whether ``literal`` is next; it is not read.

        Args:
            literal: What to look for.
            partly: It is next also where the text ends within it, or before it.
        """
        while True:
            there = self._text[self._at : self._at + len(literal)]
            if there == literal:
                return True
            if self.ended or not literal.startswith(there):
                return partly and literal.startswith(there)
            yield

    def accept(self, literal: str) -> Reading[bool]:
        """Read ``literal`` if it is next; whether it was."""
        found = yield from self.comes(literal)
        if found:
            self._at += len(literal)
        return found

    def take(self, literal: str) -> Reading[None]:
        """Read ``literal``.

        Raises:
            MalformedError: Something else is next.
        """
        if not (yield from self.accept(literal)):
            raise MalformedError

    def until(self, markers: Markers, tell: Tell) -> Reading[str | None]:
        """Read up to and with the next of ``markers``; which one it was, or ``None`` at the end.

        Args:
            markers: What to look for.
            tell: Is given the text before it, as it comes; only what may yet become a marker is held back.
        """
        while True:
            found = markers.find(self._text, self._at)
            if found is not None:
                if found.start() > self._at:
                    tell(self._text[self._at : found.start()])
                self._at = found.end()
                return found[0]
            end = len(self._text) - (0 if self.ended else markers.held(self._text, self._at))
            if end > self._at:
                tell(self._text[self._at : end])
                self._at = end
            if self.ended:
                return None
            yield

    def up_to(self, pattern: re.Pattern[str], tell: Tell) -> Reading[str]:
        """Read up to and with the next character that ``pattern`` matches; which one it was, or empty at the end.

        Args:
            pattern: Matches single characters.
            tell: Is given the text before it, as it comes.
        """
        while True:
            found = pattern.search(self._text, self._at)
            end = len(self._text) if found is None else found.start()
            if end > self._at:
                tell(self._text[self._at : end])
                self._at = end
            if found is not None:
                self._at = found.end()
                return found[0]
            if self.ended:
                return ""
            yield

    def rest(self, tell: Tell) -> Reading[None]:
        """Read to the end, telling what comes as it comes."""
        while True:
            if self._at < len(self._text):
                tell(self._text[self._at :])
                self._at = len(self._text)
            if self.ended:
                return
            yield
