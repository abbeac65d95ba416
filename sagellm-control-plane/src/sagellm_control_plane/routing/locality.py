"""Where most of the prompt is cached, unless that engine is overloaded."""

from __future__ import annotations

import random

from sagellm_control_plane.board import Board, Rows
from sagellm_control_plane.observing import Subject
from sagellm_control_plane.prefixes import GuessedPrefixes

from .base import Router, tied_least
from .least_load import LeastLoad

SHARE = 0.5
BUSY_FACTOR = 1.5
BUSY_TOKENS = 8192


class Locality(Router):
    """The longest prefix if it is long enough and loads are even, else the least load.

    The rule of SGLang's router. One block at the head of every prompt would send everything to one engine, hence the
    share; a popular prefix would, hence the bound on load.

    Args:
        share: Of the prompt that must be cached for it to count.
        busy_factor: An engine is passed over once its load is this much of the least,
        busy_tokens: and by this much more.
    """

    def __init__(self, share: float = SHARE, busy_factor: float = BUSY_FACTOR, busy_tokens: int = BUSY_TOKENS) -> None:
        self._share, self._busy_factor, self._busy_tokens = share, busy_factor, busy_tokens
        self._prefixes = GuessedPrefixes()
        self._between = LeastLoad()
        self._board: Board | None = None

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Compare prefixes among those that are not overloaded; ties go by load."""
        if request.block_hashes:
            load = board.load(rows)
            lowest = load.min()
            even = rows[load <= max(lowest * self._busy_factor, lowest + self._busy_tokens)]
            cached = self._prefixes.matched_tokens(request.block_hashes, request.block_size, len(board))[even]
            if cached.max() >= self._share * request.prompt_tokens:
                return self._between.choose(request, board, tied_least(even, -cached), now, rng)
        return self._between.choose(request, board, rows, now, rng)

    def joined(self, row: int, board: Board) -> None:
        """An engine came."""
        self._board = board

    def gone(self, row: int) -> None:
        """All that it had is lost."""
        self._prefixes.forget(row)

    def cache_lost(self, row: int) -> None:
        """It holds nothing."""
        self._prefixes.forget(row)

    def placed(self, request: Subject, row: int, now: float) -> None:
        """It will hold the prompt."""
        assert self._board is not None
        if request.block_hashes:
            holds = int(self._board.cache_tokens[row])
            self._prefixes.note(row, request.block_hashes, request.block_size, holds)
