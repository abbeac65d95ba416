"""What parsers of reasoning share: a part at the beginning, between two tags, that is told apart from the answer.

Knows nothing of any family's tags.
"""

from __future__ import annotations

from typing import ClassVar

from sagellm_core.front.parsing.pieces import Content, Thought
from sagellm_core.front.parsing.source import Markers, Reading
from sagellm_core.front.parsing.stage import Stage


class ReasoningParser(Stage):
    """Finds the reasoning at the beginning of a choice's text.

    White space around the tags belongs to their form. A tag that comes later is content.

    Args:
        opened: The prompt has opened the reasoning already.

    Attributes:
        opens: Tag before the reasoning.
        closes: Tag after it.
    """

    opens: ClassVar[str]
    closes: ClassVar[str]

    def __init__(self, *, opened: bool = False) -> None:
        super().__init__()
        self._opened = opened
        self._blank = ""

    @classmethod
    def markers(cls) -> tuple[str, ...]:
        """Strings of the form that vocabularies may have as special tokens."""
        return (cls.opens, cls.closes)

    @classmethod
    def within(cls, text: str) -> bool:
        """Whether a prompt, or a message that is continued, ends within reasoning."""
        return text.rfind(cls.opens) > text.rfind(cls.closes)

    def _read(self) -> Reading[None]:
        self.thinking = self._opened
        if not self._opened:
            before = yield from self._source.space()
            if not (yield from self._source.accept(self.opens)):
                if before:
                    self._say(Content(before))
                yield from self._answer()
                return
            self.thinking = True
        yield from self._source.space()
        closed = yield from self._source.until(Markers(self.closes), self._think)
        self.thinking = False
        if closed is not None:
            yield from self._source.space()
            yield from self._answer()

    def _answer(self) -> Reading[None]:
        yield from self._source.rest(self._tell)

    def _tell(self, text: str) -> None:
        self._say(Content(text))

    def _think(self, text: str) -> None:
        """More reasoning; white space at its end is told only when more follows."""
        text = self._blank + text
        kept = text.rstrip()
        self._blank = text[len(kept) :]
        if kept:
            self._say(Thought(kept))
