"""Projections that adapters may change: which modules are stacked in each, and what every adapter adds to it.

The rows of a step that go through adapters are set around the forward pass, as its other inputs are: layers call their
projections as ever. Knows nothing of where adapters come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sagellm_protocol.backend import AdaptedRows, LowRank

Run = tuple[int, int, str]
"""Rows of a step, from one to before another, and the key of the adapter they go through."""


@dataclass(eq=False)
class Adapting:
    """One model's projections, and the step under way.

    Attributes:
        runs: Rows of the step that go through adapters; empty for a step without any.
        projections: Those that can be adapted.
        root: What a checkpoint with a head puts before modules' names.
        mixture: Whether the model has experts.
    """

    runs: Sequence[Run] = ()
    projections: list[Adaptable] = field(default_factory=list)
    root: str = ""
    mixture: bool = False

    @property
    def targets(self) -> dict[str, tuple[Adaptable, int]]:
        """By module, the projection it is in, and its place among those stacked there."""
        return {
            name: (projection, part) for projection in self.projections for part, name in enumerate(projection.names)
        }

    @contextmanager
    def step(self, runs: Sequence[Run]) -> Iterator[None]:
        """Let rows go through adapters until this ends."""
        self.runs = runs
        try:
            yield
        finally:
            self.runs = ()


@dataclass(eq=False)
class Adaptable:
    """One packed projection.

    Attributes:
        adapting: Of the model.
        names: Modules stacked in it.
        rows: Output features of each.
        columns: Input features.
        order: Row numbers of a module alone in the order they are packed, if not the stored one.
        low_rank: What each adapter that is in memory adds, by its key.
    """

    adapting: Adapting
    names: Sequence[str]
    rows: Sequence[int]
    columns: int
    order: Sequence[int] | None = None
    low_rank: dict[str, LowRank[Any]] = field(default_factory=dict)

    def adapted(self) -> list[AdaptedRows[Any]] | None:
        """Rows of the step under way that an adapter of this projection is for."""
        return [
            AdaptedRows(begin, end, self.low_rank[key])
            for begin, end, key in self.adapting.runs
            if key in self.low_rank
        ] or None
