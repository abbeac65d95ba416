"""Beam search: which sequences to go on with, which have ended, and when no better one is to come.

Hugging Face's ``generate(num_beams=..., do_sample=False)`` in its semantics: the same candidates, scores and end. Pure
decisions over numbers; knows nothing of models, requests or text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Literal

from sagellm_core.core.plan import TokenLogprob


@dataclass(frozen=True)
class Beam:
    """A sequence under way, or at its end.

    Attributes:
        tokens: What was produced.
        logprob: Of all of it; natural logarithm.
        positions: Log-probability of each token, with the likeliest at its position; empty if not asked for.
        ended: Its last token is an end token.
    """

    tokens: tuple[int, ...] = ()
    logprob: float = 0.0
    positions: tuple[TokenLogprob, ...] = ()
    ended: bool = False

    def follow(self, token: int, place: int, row: TokenLogprob, ended: bool, reported: int | None) -> Beam:
        """This one with one token more, the ``place``-th of ``row``'s likeliest, counted from 0."""
        value = row.top[place][1]
        positions = self.positions
        if reported is not None:
            positions = (*positions, TokenLogprob(value, place + 1, row.top[:reported]))
        return Beam((*self.tokens, token), self.logprob + value, positions, ended)


class BeamSearch:
    """The search for the likeliest continuations of one prompt.

    Args:
        width: Sequences to go on with, and to end with.
        end_ids: Tokens that end a sequence.
        limit: Most tokens of one; at least 1.
        least: Fewest tokens before an end token.
        length_penalty: A sequence's score is its log-probability over its length to this power.
        early_stopping: Whether ``width`` ended sequences are enough; else it goes on while a running one may yet be
            better, judged by the length that it has or, with ``never``, the most that its score can become.
        reported: Alternatives to keep of each position; ``None`` keeps no log-probabilities at all.

    Attributes:
        running: The beams to extend, best first; none once the search is over.
        alternatives: How many of the likeliest next tokens :meth:`extend` needs of each.
    """

    def __init__(
        self,
        width: int,
        end_ids: Collection[int],
        limit: int,
        *,
        least: int = 0,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        reported: int | None = None,
    ) -> None:
        # So many that a full set of beams goes on even if every end token is among the best after each of them.
        self.alternatives = width * max(2, 1 + len(end_ids))
        self.running: list[Beam] = [Beam()]
        self._width = width
        self._end_ids = frozenset(end_ids)
        self._limit = limit
        self._least = least
        self._penalty = length_penalty
        self._early = early_stopping
        self._reported = reported
        self._ended: list[tuple[float, Beam]] = []  # best first, at most ``width``

    def extend(self, rows: Sequence[TokenLogprob]) -> None:
        """Go one token on.

        Args:
            rows: For each of ``running``, the likeliest next tokens, :attr:`alternatives` of them.
        """
        length = len(self.running[0].tokens) + 1
        candidates = [
            (beam.logprob + value, number, place)
            for number, (beam, row) in enumerate(zip(self.running, rows, strict=True))
            for place, (token, value) in enumerate(row.top[: self.alternatives])
            if length > self._least or token not in self._end_ids
        ]
        # Of equals, the earlier beam's and the likelier token's first.
        best = nlargest(self.alternatives, candidates, key=lambda one: (one[0], -one[1], -one[2]))
        going_on: list[Beam] = []
        for rank, (_, number, place) in enumerate(best):
            row = rows[number]
            token = row.top[place][0]
            ends = token in self._end_ids
            if ends or length >= self._limit:
                if rank < self._width:
                    self._end(self.running[number].follow(token, place, row, ends, self._reported))
            elif len(going_on) < self._width:
                going_on.append(self.running[number].follow(token, place, row, False, self._reported))
        self.running = going_on if going_on and not self._enough(going_on[0]) else []

    def best(self) -> list[tuple[float, Beam]]:
        """Sequences that ended, with their scores, best first; up to ``width``."""
        return list(self._ended)

    def score(self, beam: Beam) -> float:
        """By which sequences are compared."""
        return float(beam.logprob / len(beam.tokens) ** self._penalty)

    def _end(self, beam: Beam) -> None:
        self._ended = nlargest(self._width, [*self._ended, (self.score(beam), beam)], key=lambda one: one[0])

    def _enough(self, leader: Beam) -> bool:
        """Whether nothing better is to come, ``leader`` being the best that would go on."""
        if len(self._ended) < self._width:
            return False
        if self._early is True:
            return True
        length = self._limit if self._early == "never" and self._penalty > 0 else len(leader.tokens)
        possible = leader.logprob / length**self._penalty
        return bool(possible <= self._ended[-1][0])
