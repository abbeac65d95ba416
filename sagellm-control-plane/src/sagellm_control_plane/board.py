"""The engines of a plane as columns: what policies and routers read, one row an engine.

Plain values, so that a decision is a handful of array operations however many engines there are. Written by whoever
accounts for the engines, live or simulated; knows neither engines nor requests.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Rows = Ints
"""Rows of a board, ascending."""
UNBOUNDED = 2**62
UNKNOWN = -1


class Role(IntEnum):
    """Which part of a request's work an engine takes."""

    BOTH = 0
    PREFILL = 1
    DECODE = 2


@dataclass(frozen=True)
class Place:
    """Where an engine runs, as far as it is known; equal values are the same place."""

    host: str | None = None
    rack: str | None = None
    island: str | None = None
    """Devices joined by a fast interconnect (NVLink, HCCS)."""


_INTS = {
    "sequences": 0,
    "capacity": 1,
    "queued_tokens": 0,
    "held_tokens": 0,
    "foreign_tokens": 0,
    "devices": 1,
    "max_len": UNBOUNDED,
    "cache_tokens": UNKNOWN,
    "role": Role.BOTH,
    "host": UNKNOWN,
    "rack": UNKNOWN,
    "island": UNKNOWN,
}
_FLOATS = {"latency_s": np.nan, "throughput_tps": np.nan, "weight": 1.0}
_FLAGS = {"alive": False, "ready": False, "suspect": False}


class Board:
    """Columns over rows. A row belongs to one engine from :meth:`join` to :meth:`leave`, and is then used again."""

    sequences: Ints
    """Sequences this plane has there."""
    capacity: Ints
    """Sequences that this plane sends there at most."""
    queued_tokens: Ints
    """Prompt tokens sent there whose answer has not begun."""
    held_tokens: Ints
    """Tokens, prompt and output, of the answers under way there."""
    foreign_tokens: Ints
    """Tokens queued and held there on behalf of others, as last reported."""
    devices: Ints
    """Devices it occupies."""
    max_len: Ints
    """Tokens of prompt and output together that it takes at most."""
    cache_tokens: Ints
    """Tokens that its cache holds, or ``UNKNOWN``."""
    role: Ints
    """A :class:`Role`."""
    host: Ints
    """Equal for engines of one host; ``UNKNOWN`` where it is not known. Likewise ``rack`` and ``island``."""
    rack: Ints
    island: Ints
    latency_s: Floats
    """Mean time to the first token of late; NaN while unmeasured."""
    throughput_tps: Floats
    """Output tokens a second of late; NaN while unmeasured."""
    weight: Floats
    """Share of requests relative to others, for canaries; 0 takes an engine out of weighted choices."""
    alive: Flags
    """Whether the row belongs to an engine."""
    ready: Flags
    """Whether it takes requests now."""
    suspect: Flags
    """Whether the last thing heard of it was a failure."""

    def __init__(self) -> None:
        self.version = 0
        """Changes with everything but load: whatever was derived from the rest is then stale."""
        self.divided = False
        """Whether an engine ever took a part of the work only."""
        self.engine_ids: list[str] = []
        """By row; empty for a row that is not alive."""
        self._adapters: list[frozenset[str]] = []
        self._holding: dict[str, set[int]] = {}
        self._places: dict[tuple[str, Hashable], int] = {}
        self._free: list[int] = []
        for name, start in _INTS.items():
            setattr(self, name, np.full(0, start, np.int64))
        for name, value in _FLOATS.items():
            setattr(self, name, np.full(0, value, np.float64))
        for name, flag in _FLAGS.items():
            setattr(self, name, np.full(0, flag, np.bool_))

    def __len__(self) -> int:
        """Rows, whether alive or not."""
        return len(self.engine_ids)

    def live_rows(self) -> Iterator[int]:
        """Rows that belong to an engine."""
        return (int(row) for row in np.flatnonzero(self.alive))

    def join(self, engine_id: str, place: Place | None = None) -> int:
        """Give an engine a row, with defaults in every column."""
        if not self._free:
            self._grow()
        row = self._free.pop()
        for columns in (_INTS, _FLOATS, _FLAGS):
            for name, start in columns.items():
                getattr(self, name)[row] = start
        self.engine_ids[row], self.alive[row] = engine_id, True
        if place is not None:
            for name, value in vars(place).items():
                if value is not None:
                    getattr(self, name)[row] = self._places.setdefault((name, value), len(self._places))
        self.version += 1
        return row

    def leave(self, row: int) -> None:
        """Take a row back."""
        self.hold_adapters(row, ())
        self.alive[row] = self.ready[row] = False
        self.engine_ids[row] = ""
        self._free.append(row)
        self.version += 1

    def describe(self, row: int, **values: float) -> None:
        """Set columns other than load; the version moves only if one changed."""
        for name, value in values.items():
            column = getattr(self, name)
            if column[row] != value:
                column[row] = value
                self.version += 1
                self.divided = self.divided or name == "role"

    def hold_adapters(self, row: int, names: Collection[str]) -> None:
        """Note which adapters an engine holds now."""
        held, wanted = self._adapters[row], frozenset(names)
        for name in held - wanted:
            self._holding[name].discard(row)
            if not self._holding[name]:
                del self._holding[name]
        for name in wanted - held:
            self._holding.setdefault(name, set()).add(row)
        self._adapters[row] = wanted

    def adapters(self, row: int) -> frozenset[str]:
        """Adapters an engine is known to hold."""
        return self._adapters[row]

    def holders(self, adapter: str) -> Collection[int]:
        """Rows of the engines known to hold an adapter."""
        return self._holding.get(adapter, frozenset[int]())

    def load(self, rows: Rows) -> Ints:
        """Work in tokens: prompts still to be computed, and the cache that answers under way occupy.

        Queued prompt tokens say how long a new prompt waits, held tokens how much each decode step must read; counted
        alike they are the cost that NVIDIA Dynamo's router uses for requests without a cached prefix.
        """
        return self.queued_tokens[rows] + self.held_tokens[rows] + self.foreign_tokens[rows]

    def room(self, rows: Rows, sequences: int) -> Flags:
        """Which rows take that many more sequences; an empty engine takes any number."""
        there = self.sequences[rows]
        fits: Flags = (there + sequences <= self.capacity[rows]) | (there == 0)
        return fits

    def _grow(self) -> None:
        old = len(self)
        new = max(8, old)
        tables: tuple[Mapping[str, float], ...] = (_INTS, _FLOATS, _FLAGS)
        for columns in tables:
            for name, start in columns.items():
                column = getattr(self, name)
                setattr(self, name, np.concatenate([column, np.full(new, start, column.dtype)]))
        self.engine_ids.extend([""] * new)
        self._adapters.extend([frozenset()] * new)
        self._free.extend(range(old + new - 1, old - 1, -1))
