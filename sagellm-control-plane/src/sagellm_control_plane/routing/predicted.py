"""Where the latency that is predicted keeps what the caller hopes for, at the least extra work."""

from __future__ import annotations

import random

import numpy as np

from sagellm_control_plane.board import Board, Floats, Rows
from sagellm_control_plane.observing import Subject

from .base import column, least
from .cost import Cost

SMOOTHING = 0.1
TELLING_TOKENS = 256
"""A wait for less work than this says more of overheads than of speed."""


class Predicted(Cost):
    """Among engines predicted to keep the request's SLO the least work to compute; if none does, the soonest.

    Time to the first token is predicted from the work ahead, queued and its own, at the speed learned for each engine
    from how long such work took; time for each later token from the engine's output a second, shared by one more.
    An engine that was not measured is taken to be as fast as the mean of the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._speed: Floats = np.zeros(0)
        self._sent: dict[int, tuple[float, float]] = {}

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Predict for every candidate."""
        work = np.full(len(rows), float(request.prompt_tokens))
        if request.block_hashes:
            work = work - self.cached(request, board)[rows]
        ttft = self._ttft(self._work.tokens[rows] + board.foreign_tokens[rows] + work, rows)
        keeps = np.ones(len(rows), np.bool_)
        if request.ttft_slo_s is not None:
            keeps &= ttft <= request.ttft_slo_s
        if request.tpot_slo_s is not None:
            throughput = board.throughput_tps[rows]
            each = (board.sequences[rows] + 1) / np.where(throughput > 0, throughput, np.inf)
            keeps &= each <= request.tpot_slo_s
        stated = request.ttft_slo_s is not None or request.tpot_slo_s is not None
        if stated and keeps.any():
            # The soonest of those with the least work keeps the most room for what comes.
            return least(rows[keeps], work[keeps] + 1e-3 * ttft[keeps], rng)
        return least(rows, ttft, rng)

    def joined(self, row: int, board: Board) -> None:
        """An engine came."""
        super().joined(row, board)
        self._speed = column(self._speed, board, np.nan)
        self._speed[row] = np.nan

    def gone(self, row: int) -> None:
        """All that it had is lost; requests sent there tell nothing."""
        super().gone(row)
        self._speed[row] = np.nan

    def placed(self, request: Subject, row: int, now: float) -> None:
        """Remember the work ahead of it."""
        super().placed(request, row, now)
        self._sent[request.number] = (float(self._work.tokens[row]), now)

    def began(self, request: Subject, row: int, now: float) -> None:
        """Learn how fast that work was done."""
        super().began(request, row, now)
        sent = self._sent.pop(request.number, None)
        if sent is not None and sent[0] >= TELLING_TOKENS and now > sent[1]:
            speed = sent[0] / (now - sent[1])
            before = self._speed[row]
            self._speed[row] = speed if np.isnan(before) else before + SMOOTHING * (speed - before)

    def left(self, request: Subject, row: int, now: float) -> None:
        """Nothing is to be learned of one that never began."""
        super().left(request, row, now)
        self._sent.pop(request.number, None)

    def _ttft(self, tokens: Floats, rows: Rows) -> Floats:
        speed = self._speed[rows]
        known = speed[~np.isnan(speed)]
        usual = float(known.mean()) if len(known) else 1.0
        return tokens / np.where(np.isnan(speed), usual, speed)
