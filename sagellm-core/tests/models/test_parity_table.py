"""The published table of parity has a row for every architecture, variant and backend, and none that fails."""

from __future__ import annotations

import re
from pathlib import Path

import tiny
from parity import TOLERANCE
from sagellm_core import models

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
ROW = re.compile(r"\| `(\w+)` \| (.+) \| (cpu|reference) \| (\S+) \| (yes|no) \|")


def rows() -> list[tuple[str, ...]]:
    table = DOCUMENT.read_text().split("<!-- parity: begin -->")[1].split("<!-- parity: end -->")[0]
    return [match.groups() for match in map(ROW.fullmatch, table.splitlines()) if match]


def test_the_table_is_in_step_with_what_is_registered() -> None:
    expected = {
        (recipe.architecture, name, backend)
        for name, recipe in {**tiny.RECIPES, **tiny.FOREIGN}.items()
        for backend in ("cpu", "reference")
    }
    assert {row[:3] for row in rows()} == expected, "run: python benchmarks/parity.py"
    foreign = {recipe.architecture for recipe in tiny.FOREIGN.values()}
    assert {row[0] for row in rows()} == {*models.ARCHITECTURES, *foreign}
    assert not foreign.intersection(models.ARCHITECTURES)


def test_every_row_of_the_table_is_within_the_tolerance() -> None:
    assert rows()
    assert all(float(difference) < TOLERANCE and equal == "yes" for *_, difference, equal in rows())


def test_every_architecture_is_described() -> None:
    described = set(re.findall(r"`(\w+)`", DOCUMENT.read_text().split("## Parity")[0]))
    assert set(models.ARCHITECTURES) <= described
