"""Prefill and decode apart: which part of the work a request is, and an engine for each."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from sagellm_control_plane.board import Board, Floats, Role, Rows
from sagellm_control_plane.observing import Subject

from .base import Router, least, tied_least
from .cost import Cost
from .topology import distances


@dataclass(frozen=True)
class PhaseRule:
    """When it pays to compute a prompt on one engine and to answer on another."""

    prompt_tokens: int = 800
    """Prompts longer than this are worth moving,"""
    ratio: float = 4.0
    """as are those of this many times the output,"""
    urgent_output_tokens: int = 500
    """but not urgent requests of shorter output,"""
    urgent_deadline_s: float = 0.1
    """nor those with less time than this: moving takes some."""

    def separates(self, request: Subject, output_tokens: int, now: float) -> bool:
        """Whether a request's prompt is to be computed apart.

        Args:
            request: The request.
            output_tokens: Of its answer, as far as can be told.
            now: Monotonic seconds.
        """
        if request.embeds:
            return False
        if request.priority <= -2 and output_tokens < self.urgent_output_tokens:
            return False
        if request.deadline is not None and request.deadline - now < self.urgent_deadline_s:
            return False
        return request.prompt_tokens > self.prompt_tokens or request.prompt_tokens / max(1, output_tokens) > self.ratio


def able(board: Board, rows: Rows, role: Role) -> Rows:
    """Rows that take that part of a request's work; those made for it alone if there are any.

    Work that is not divided goes to engines that do both, or else to those that decode: they can compute prompts too.
    """
    roles = board.role[rows]
    for wanted in (role, Role.BOTH) if role is not Role.BOTH else (Role.BOTH, Role.DECODE):
        found: Rows = rows[roles == wanted]
        if len(found):
            return found
    return np.zeros(0, np.int64)


class Phased(Router):
    """The cost rule for prompts; for answers the fewest held tokens, near to where the prompt was computed."""

    def __init__(self) -> None:
        self._prompts = Cost()
        self._by_id: dict[str, int] = {}

    def choose(self, request: Subject, board: Board, rows: Rows, now: float, rng: random.Random) -> int:
        """Choose by what is to be placed."""
        if request.role is not Role.DECODE:
            return self._prompts.choose(request, board, rows, now, rng)
        held: Floats = (board.held_tokens[rows] + board.foreign_tokens[rows]).astype(np.float64)
        origin = self._by_id.get(request.source) if request.source is not None else None
        if origin is not None:
            held = held + request.prompt_tokens * distances(board, origin, rows)
        tied = tied_least(rows, held)
        return int(tied[0]) if len(tied) == 1 else least(tied, board.sequences[tied], rng)

    def joined(self, row: int, board: Board) -> None:
        """An engine came."""
        self._by_id[board.engine_ids[row]] = row
        self._prompts.joined(row, board)

    def gone(self, row: int) -> None:
        """All that it had is lost."""
        self._by_id = {name: other for name, other in self._by_id.items() if other != row}
        self._prompts.gone(row)

    def cache_lost(self, row: int) -> None:
        """It holds nothing."""
        self._prompts.cache_lost(row)

    def placed(self, request: Subject, row: int, now: float) -> None:
        """Only prompts are work to come."""
        if request.role is not Role.DECODE:
            self._prompts.placed(request, row, now)

    def began(self, request: Subject, row: int, now: float) -> None:
        """Its prompt is computed."""
        self._prompts.began(request, row, now)

    def left(self, request: Subject, row: int, now: float) -> None:
        """Whatever was left of it is not to be done there."""
        self._prompts.left(request, row, now)
