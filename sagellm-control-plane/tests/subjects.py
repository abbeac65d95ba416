"""Requests and engines as plain values, for whoever decides over them."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from sagellm_control_plane.board import Board, Place, Role
from sagellm_control_plane.routing import Router, router_named


@dataclass(frozen=True)
class Ask:
    number: int = 1
    model: str = "m"
    arrived: float = 0.0
    deadline: float | None = None
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    priority: int = 0
    prompt_tokens: int = 10
    block_hashes: Sequence[Hashable] = ()
    block_size: int = 64
    cost_budget: float | None = None
    user: str | None = None
    session_id: str | None = None
    adapter: str | None = None
    embeds: bool = False
    role: Role = Role.BOTH
    source: str | None = None


class Ring:
    """A router and the engines that it chooses from."""

    def __init__(self, name: str | Router, *engines: str, seed: int = 0, **columns: float) -> None:
        self.router = router_named(name) if isinstance(name, str) else name
        self.board, self.rng = Board(), random.Random(seed)
        self.rows: dict[str, int] = {}
        self.numbers = 0
        for engine in engines:
            self.join(engine, **columns)

    def join(self, engine: str, place: Place | None = None, **columns: float) -> int:
        row = self.rows[engine] = self.board.join(engine, place)
        self.board.ready[row] = True
        self.set(engine, **{"capacity": 100, **columns})
        self.router.joined(row, self.board)
        return row

    def set(self, engine: str, **columns: float) -> None:
        for name, value in columns.items():
            getattr(self.board, name)[self.rows[engine]] = value

    def leave(self, engine: str) -> None:
        row = self.rows.pop(engine)
        self.router.gone(row)
        self.board.leave(row)

    def choose(self, request: Ask = Ask(), among: Sequence[str] | None = None) -> str:
        rows = np.array(sorted(self.rows[engine] for engine in (among or self.rows)), np.int64)
        return self.board.engine_ids[self.router.choose(request, self.board, rows, 0.0, self.rng)]

    def place(self, request: Ask = Ask(), among: Sequence[str] | None = None, now: float = 0.0) -> str:
        engine = self.choose(request, among)
        row = self.rows[engine]
        self.board.sequences[row] += 1
        self.board.queued_tokens[row] += request.prompt_tokens
        self.router.placed(request, row, now)
        return engine

    def begin(self, request: Ask, engine: str, now: float = 0.0) -> None:
        row = self.rows[engine]
        self.board.queued_tokens[row] -= request.prompt_tokens
        self.board.held_tokens[row] += request.prompt_tokens
        self.router.began(request, row, now)

    def end(self, request: Ask, engine: str, now: float = 0.0) -> None:
        row = self.rows[engine]
        self.board.sequences[row] -= 1
        self.board.held_tokens[row] -= request.prompt_tokens
        self.router.left(request, row, now)
