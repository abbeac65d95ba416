"""A parser over text that comes in pieces: its way in and its way out.

Knows nothing of any form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from .pieces import Piece, joined
from .source import Reading, Source


class Stage(ABC):
    """Text in, pieces out.

    Attributes:
        thinking: Whether what came last is reasoning, or its end.
    """

    def __init__(self) -> None:
        self.thinking = False
        self._source = Source()
        self._pieces: list[Piece] = []
        self._reading = self._read()

    def push(self, text: str) -> list[Piece]:
        """Take in the next text; what it completes."""
        self._source.feed(text)
        return self._go_on()

    def flush(self) -> list[Piece]:
        """What was held back, once no more will come."""
        self._source.ended = True
        return self._go_on()

    @abstractmethod
    def _read(self) -> Reading[None]:
        """Read all of the source, and say what is in it."""

    def _say(self, piece: Piece) -> None:
        whole = joined(self._pieces[-1], piece) if self._pieces else None
        if whole is None:
            self._pieces.append(piece)
        else:
            self._pieces[-1] = whole

    def _go_on(self) -> list[Piece]:
        next(self._reading, None)
        pieces, self._pieces = self._pieces, []
        return pieces
