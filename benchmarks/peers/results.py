"""What a run found: plain values, as JSON keeps them."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

START, MEMORY_ONE, MEMORY_MANY = "start", "memory a", "memory c"


@dataclass
class Row:
    """One engine with one kind of weights.

    Attributes:
        engine: Its name.
        format: Its weights, as :class:`~.weights.Weights` names them.
        kind: Class of weights that it is held against others in.
        version: Its version; empty when it could not be set up.
        figures: What every round gave: tokens a second by the letter of the workload, ``start`` in seconds,
            ``memory a`` and ``memory c`` in MB.
        failures: Why there is no figure, by the same names.
    """

    engine: str
    format: str
    kind: str
    version: str = ""
    figures: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """Take in one round's figure."""
        self.figures.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        """The median of a figure's rounds; ``None`` where there is none, or where a round failed."""
        values = self.figures.get(name)
        return statistics.median(values) if values and name not in self.failures else None


@dataclass
class Results:
    """A run.

    Attributes:
        machine: What it ran on, for people.
        date: Day of the run, ISO 8601.
        threads: Threads each engine computed with.
        rounds: Rounds of (a) to (d).
        torch_import_mb: What importing torch adds to a process, MB.
        rows: In the order of the table; the first of a class is ours when ours took part.
    """

    machine: str
    date: str
    threads: int
    rounds: int
    torch_import_mb: float | None = None
    rows: list[Row] = field(default_factory=list)

    def take_in(self, earlier: Results) -> None:
        """Keep what an earlier run on this machine found and this one did not measure.

        Figures of one class and workload are always of one run: what was measured again replaces what was there.
        """
        now = {(row.engine, row.format): row for row in self.rows}
        measured = {(row.kind, name) for row in self.rows for name in (*row.figures, *row.failures)}
        merged = []
        for old in earlier.rows:
            row = now.pop((old.engine, old.format), None) or Row(old.engine, old.format, old.kind, old.version)
            for mine, theirs in ((row.figures, old.figures), (row.failures, old.failures)):
                mine.update({name: kept for name, kept in theirs.items() if (old.kind, name) not in measured})
            merged.append(row)
        self.rows = [*merged, *now.values()]
        self.rounds = min(self.rounds, earlier.rounds)
        if self.torch_import_mb is None:
            self.torch_import_mb = earlier.torch_import_mb

    def to_json(self) -> dict[str, Any]:
        """As JSON's values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Results:
        """Read what :meth:`to_json` gave."""
        return cls(**{**values, "rows": [Row(**row) for row in values["rows"]]})
