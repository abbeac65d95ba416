"""The cost rule: what a request has to compute there, behind what, and beside what."""

from __future__ import annotations

import random

import numpy as np

from sagellm_control_plane.board import Board, Floats, Ints, Rows
from sagellm_control_plane.observing import Subject
from sagellm_control_plane.prefixes import GuessedPrefixes, ToldPrefixes
from sagellm_protocol import KVEventBatch

from .base import Router, column, least, tied_least
from .work import PendingWork

HELD_WEIGHT = 0.02
"""What a token held by answers under way counts beside one to compute."""
HIT_WEIGHT = 3.0
"""What a cached token counts: computing it elsewhere also displaces what is cached there."""


class Cost(Router):
    """Uncached prompt tokens, plus those queued there, plus a share of the tokens that answers under way hold.

    The rule of NVIDIA Dynamo's router, with two differences. What waits is counted without what its engine had cached,
    as that is not work; and the held tokens weigh less, as a decode step reads them while a prompt is computed.
    What an engine has cached is guessed from what it was sent.

    Args:
        held_weight: What a held token counts.
        hit_weight: What a cached token counts; above 1 it is worth a wait not to compute it.
        max_blocks: Bound of the guesses.
    """

    def __init__(
        self, held_weight: float = HELD_WEIGHT, hit_weight: float = HIT_WEIGHT, max_blocks: int = 1_000_000
    ) -> None:
        self._held_weight, self._hit_weight = held_weight, hit_weight
        self._prefixes = GuessedPrefixes(max_blocks)
        self._work = PendingWork()
        self._board: Board | None = None

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Compare costs; ties go by sequences, then by chance."""
        beside = board.held_tokens[rows] * self._held_weight + board.foreign_tokens[rows]
        costs = self._work.tokens[rows] + beside
        if request.block_hashes:
            costs = costs - self._hit_weight * self.cached(request, board)[rows]
        tied = tied_least(rows, costs)
        return int(tied[0]) if len(tied) == 1 else least(tied, board.sequences[tied], rng)

    def cached(self, request: Subject, board: Board) -> Ints:
        """Tokens of the prompt that each engine is thought to hold, by row."""
        return self._prefixes.matched_tokens(request.block_hashes, request.block_size, len(board))

    def joined(self, row: int, board: Board) -> None:
        """An engine came."""
        self._board = board
        self._work.joined(row, board)

    def gone(self, row: int) -> None:
        """All that it had is lost."""
        self.cache_lost(row)
        self._work.gone(row)

    def cache_lost(self, row: int) -> None:
        """It holds nothing."""
        self._prefixes.forget(row)

    def placed(self, request: Subject, row: int, now: float) -> None:
        """It will compute what it has not, and hold the prompt then."""
        assert self._board is not None
        cached = 0
        if request.block_hashes:
            cached = int(self.cached(request, self._board)[row])
            size, holds = request.block_size, int(self._board.cache_tokens[row])
            self._prefixes.note(row, request.block_hashes, size, holds)
        self._work.placed(request.number, row, max(0, request.prompt_tokens - cached))

    def began(self, request: Subject, row: int, now: float) -> None:
        """Its prompt is computed."""
        self._work.done(request.number)

    def left(self, request: Subject, row: int, now: float) -> None:
        """Whatever was left of it is not to be done there."""
        self._work.done(request.number)


class ToldCost(Cost):
    """The cost rule with what engines tell of their caches, and guesses for those that tell nothing."""

    def __init__(
        self, held_weight: float = HELD_WEIGHT, hit_weight: float = HIT_WEIGHT, max_blocks: int = 1_000_000
    ) -> None:
        super().__init__(held_weight, hit_weight, max_blocks)
        self._told = ToldPrefixes()
        self._tells: Floats = np.zeros(0)

    def cached(self, request: Subject, board: Board) -> Ints:
        """As told where anything was told."""
        told = self._told.matched_tokens(request.block_hashes, request.block_size, len(board))
        return np.where(self._tells > 0, told, super().cached(request, board))

    def joined(self, row: int, board: Board) -> None:
        """An engine came, and has told nothing."""
        super().joined(row, board)
        self._tells = column(self._tells, board)
        self._tells[row] = 0.0

    def cache_changed(self, row: int, batch: KVEventBatch) -> None:
        """Take in what an engine told."""
        self._tells[row] = 1.0
        self._told.apply(row, batch)

    def cache_lost(self, row: int) -> None:
        """It holds nothing, and tells anew."""
        super().cache_lost(row)
        self._tells[row] = 0.0
        self._told.forget(row)
