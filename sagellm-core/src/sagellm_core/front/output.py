"""A choice's text as answer, reasoning and calls: parsers in a row, and what they found as the contract has it.

Knows nothing of any form, nor of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sagellm_protocol.events import ToolCallDelta

from .parsing.pieces import Arguments, CallEnd, CallStart, Content, Piece, Thought
from .parsing.stage import Stage


class Found(NamedTuple):
    """What some text came to."""

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class OutputParser:
    """Takes one choice's text apart.

    Args:
        stages: Parsers; what one of them leaves as content goes through the next.
        new_id: Makes the id of a call that the model gave none.
        parallel: Whether there may be more than one call.

    Attributes:
        num_calls: Calls begun.
        calling: Whether the last of them has not ended.
        enough: A call is complete, and no other is wanted: all text after it is dropped.
    """

    def __init__(self, stages: Sequence[Stage], new_id: Callable[[], str], *, parallel: bool = True) -> None:
        self.num_calls = 0
        self.calling = False
        self.enough = False
        self._stages = stages
        self._new_id = new_id
        self._parallel = parallel
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCallDelta] = []

    @property
    def thinking(self) -> bool:
        """Whether what came last is reasoning."""
        return any(stage.thinking for stage in self._stages)

    def push(self, text: str) -> None:
        """Take in the next text."""
        self._note(self._through(0, [Content(text)]))

    def flush(self) -> None:
        """Take in that no more will come."""
        for number, stage in enumerate(self._stages, start=1):
            self._note(self._through(number, stage.flush()))

    def take(self) -> Found:
        """What was found since the last call."""
        found = Found("".join(self._text), "".join(self._reasoning), tuple(self._calls))
        self._text.clear()
        self._reasoning.clear()
        self._calls.clear()
        return found

    def _through(self, first: int, pieces: list[Piece]) -> list[Piece]:
        for stage in self._stages[first:]:
            passed: list[Piece] = []
            for piece in pieces:
                if isinstance(piece, Content):
                    passed.extend(stage.push(piece.text))
                else:
                    passed.append(piece)
            pieces = passed
        return pieces

    def _note(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            if self.enough:
                return
            if isinstance(piece, Content):
                self._text.append(piece.text)
            elif isinstance(piece, Thought):
                self._reasoning.append(piece.text)
            elif isinstance(piece, CallStart):
                delta = ToolCallDelta(index=self.num_calls, id=piece.id or self._new_id(), name=piece.name)
                self._calls.append(delta)
                self.num_calls += 1
                self.calling = True
            elif isinstance(piece, Arguments):
                self._argue(piece.text)
            elif isinstance(piece, CallEnd):
                self.calling = False
                self.enough = not self._parallel

    def _argue(self, text: str) -> None:
        index = self.num_calls - 1
        last = self._calls.pop() if self._calls else ToolCallDelta(index=index)
        self._calls.append(last.model_copy(update={"arguments": last.arguments + text}))
