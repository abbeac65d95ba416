"""Tables of a run in Markdown: figures of every engine, and ours over each peer's with weights of the same class."""

from __future__ import annotations

from collections.abc import Sequence

from .results import MEMORY_MANY, MEMORY_ONE, START, Results, Row

OURS = "SageLLM"
NOTHING = "\N{EN DASH}"
COLUMNS = {"a": "a", "b": "b", "c": "c", "d": "d", START: "start s", MEMORY_ONE: "MB, a", MEMORY_MANY: "MB, c"}


def tables(results: Results) -> str:
    """Everything a reader needs, from what was run to why a figure is missing."""
    notes: list[str] = []
    parts = [
        f"{results.machine}; {results.date}; {results.threads} threads;"
        f" medians of {results.rounds} rounds or more, engines in turn.",
        figures(results.rows, notes),
    ]
    compared = ratios(results.rows)
    if compared:
        parts.append("SageLLM over each peer, weights of the same class (start and memory: less is better):")
        parts.append(compared)
    if results.torch_import_mb is not None:
        parts.append(f"Of SageLLM's memory, importing torch takes {results.torch_import_mb:,.0f} MB.")
    if any(row.median(name) is None and name not in row.failures for row in results.rows for name in COLUMNS):
        parts.append(f"{NOTHING}: not measured.")
    parts += notes
    return "\n\n".join(parts)


def figures(rows: Sequence[Row], notes: list[str]) -> str:
    """One line an engine and kind of weights; for what failed, a number, and the reason added to ``notes``."""
    lines = _head("weights", "engine", "version", *COLUMNS.values())
    for row in rows:
        cells = [_cell(row, name, notes) for name in COLUMNS]
        lines.append(_line(row.format, row.engine, row.version or NOTHING, *cells))
    return "\n".join(lines)


def ratios(rows: Sequence[Row]) -> str:
    """Ours over theirs, a line a peer; empty when there is nothing to hold against each other."""
    lines = []
    for ours in rows:
        if ours.engine != OURS:
            continue
        for theirs in rows:
            if theirs.kind == ours.kind and theirs.engine != OURS:
                cells = [_over(ours.median(name), theirs.median(name)) for name in COLUMNS]
                lines.append(_line(ours.format, f"{theirs.engine}, {theirs.format}", *cells))
    return "\n".join([*_head("ours", "over", *COLUMNS.values()), *lines]) if lines else ""


def number(value: float) -> str:
    """Three digits or more, the way people write them."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _cell(row: Row, name: str, notes: list[str]) -> str:
    if name in row.failures:
        reason = f"{row.engine}, {row.format}: {row.failures[name]}"
        found = next((index for index, note in enumerate(notes) if note.endswith(reason)), None)
        if found is None:
            notes.append(f"[{len(notes) + 1}] {reason}")
            found = len(notes) - 1
        return f"failed [{found + 1}]"
    value = row.median(name)
    return NOTHING if value is None else number(value)


def _over(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.2f}x" if ours is not None and theirs else NOTHING


def _head(*names: str) -> list[str]:
    return [_line(*names), "|" + "---|" * len(names)]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
