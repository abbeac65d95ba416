"""A decision on the number of engines, with what it was made from and why, in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PoolView:
    """The engines of a model at one moment."""

    ready: int
    starting: int = 0
    """Under way to being ready; counted as if they were."""
    max_num_seqs: int | None = None
    """Sequences that one runs at once, as far as any has told."""

    @property
    def engines(self) -> int:
        """Ready or on their way."""
        return self.ready + self.starting


@dataclass(frozen=True)
class Decision:
    """How many engines there are to be."""

    at: float
    """Monotonic seconds."""
    engines: int
    """As many as there were."""
    wanted: int
    reason: str
    inputs: Mapping[str, float] = field(default_factory=dict)
    """Figures it was made from, by name; what was not measured is missing."""

    @property
    def change(self) -> int:
        """Engines to add, or if negative to take away."""
        return self.wanted - self.engines
