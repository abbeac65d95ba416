"""Going on with a stream on another engine, so that its reader sees no seam: no token repeated, none lost.

The other engine answers the whole request again, and what the caller was given already is left out. That is exact where
the answer is a function of the request: decoded greedily, or drawn from a seed of the request's own, by the same model.
What is left out is compared with what was given, and the first difference ends the request. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sagellm_protocol import DeltaEvent, EndEvent, Request, StartEvent, StreamEvent, ToolCallDelta

S = TypeVar("S", bound=Sequence[object])


class Diverged(Exception):
    """The second answer is not the first."""


def repeatable(request: object) -> bool:
    """Whether an answer is a function of its request."""
    if not isinstance(request, Request) or request.sampling.beam_width is not None:
        return False
    return request.sampling.greedy or request.sampling.seed is not None


@dataclass
class _Choice:
    """What was given of one choice; texts in pieces, because joining them for each token would cost more."""

    tokens: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, list[str]] = field(default_factory=dict)
    """Pieces of arguments, by call."""


class Given:
    """What a caller was given of an answer."""

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}

    @property
    def tokens(self) -> int:
        """Tokens given, over all choices."""
        return sum(len(choice.tokens) for choice in self._choices.values())

    def note(self, event: DeltaEvent) -> None:
        """The caller is given this too."""
        choice = self._choices.get(event.index)
        if choice is None:
            choice = self._choices[event.index] = _Choice()
        choice.tokens.extend(event.token_ids)
        if event.text:
            choice.text.append(event.text)
        if event.reasoning:
            choice.reasoning.append(event.reasoning)
        for piece in event.tool_calls:
            choice.calls.setdefault(piece.index, []).append(piece.arguments)

    def again(self) -> Replay:
        """What sifts a second answer, from its first event."""
        return Replay(
            {
                index: _Sieve(
                    tuple(choice.tokens),
                    "".join(choice.text),
                    "".join(choice.reasoning),
                    {number: "".join(pieces) for number, pieces in choice.calls.items()},
                )
                for index, choice in self._choices.items()
            }
        )


@dataclass
class _Sieve:
    """What is to come again of one choice, less what has."""

    tokens: tuple[int, ...]
    text: str
    reasoning: str
    calls: dict[int, str]

    @property
    def empty(self) -> bool:
        return not (self.tokens or self.text or self.reasoning or any(self.calls.values()))


class Replay:
    """Leaves out of a second answer what its caller was given of the first."""

    def __init__(self, sieves: dict[int, _Sieve]) -> None:
        self._sieves = sieves

    def rest(self, event: DeltaEvent) -> DeltaEvent | None:
        """What is new in an event, if anything is.

        Raises:
            Diverged: It is not what was given.
        """
        sieve = self._sieves.get(event.index)
        if sieve is None:
            return event
        repeated = min(len(sieve.tokens), len(event.token_ids))
        token_ids, sieve.tokens = _beyond(sieve.tokens, event.token_ids)
        text, sieve.text = _beyond(sieve.text, event.text)
        reasoning, sieve.reasoning = _beyond(sieve.reasoning, event.reasoning)
        calls = tuple(new for piece in event.tool_calls if (new := _call(sieve, piece)) is not None)
        if not (token_ids or text or reasoning or calls):
            return None
        update = {"token_ids": token_ids, "text": text, "reasoning": reasoning, "tool_calls": calls}
        logprobs = None if event.logprobs is None else event.logprobs[repeated:]
        return event.model_copy(update={**update, "logprobs": logprobs})

    def check_complete(self) -> None:
        """All that was given must have come again by the end.

        Raises:
            Diverged: The second answer is shorter.
        """
        if not all(sieve.empty for sieve in self._sieves.values()):
            raise Diverged


def _call(sieve: _Sieve, piece: ToolCallDelta) -> ToolCallDelta | None:
    """A piece of a call, less what was given; its name and id, which may be another, come with its first piece."""
    if piece.index not in sieve.calls:
        return piece
    arguments, sieve.calls[piece.index] = _beyond(sieve.calls[piece.index], piece.arguments)
    return ToolCallDelta(index=piece.index, arguments=arguments) if arguments else None


def _beyond(given: S, came: S) -> tuple[S, S]:
    """What came beyond what was given, and what of that is still to come."""
    common = min(len(given), len(came))
    if given[:common] != came[:common]:
        raise Diverged
    return came[common:], given[common:]  # type: ignore[return-value]


class Seam:
    """What one caller is told over all attempts at its request.

    Args:
        resumable: Whether to keep what was given, so that another attempt may go on with it.
    """

    def __init__(self, resumable: bool) -> None:
        self.given = Given() if resumable else None
        self._replay: Replay | None = None
        self._started = False

    def begin_again(self) -> None:
        """Another attempt begins."""
        self._replay = self.given.again() if self.given is not None else None

    def told(self, event: StreamEvent) -> StreamEvent | None:
        """What of an attempt's event the caller has not been told.

        Raises:
            Diverged: See :meth:`Replay.rest`.
        """
        if isinstance(event, DeltaEvent):
            new = event if self._replay is None else self._replay.rest(event)
            if new is not None and self.given is not None:
                self.given.note(new)
            return new
        if isinstance(event, StartEvent):
            if self._started:
                return None
            self._started = True
        elif isinstance(event, EndEvent) and self._replay is not None:
            self._replay.check_complete()
        return event
