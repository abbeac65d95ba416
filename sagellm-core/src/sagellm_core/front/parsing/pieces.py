"""What a parser finds in a model's text, in order.

Knows nothing of how it was written.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """More of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins."""

    name: str
    id: str | None = None
    """As the model gave it; most do not."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the JSON text of the call that began last."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call that began last is complete."""


Piece = Content | Thought | CallStart | Arguments | CallEnd


def joined(last: Piece, piece: Piece) -> Piece | None:
    """Two pieces as one, where the second goes on with the first."""
    if isinstance(last, Content) and isinstance(piece, Content):
        return Content(last.text + piece.text)
    if isinstance(last, Thought) and isinstance(piece, Thought):
        return Thought(last.text + piece.text)
    if isinstance(last, Arguments) and isinstance(piece, Arguments):
        return Arguments(last.text + piece.text)
    return None
