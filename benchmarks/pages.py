"""Put what was measured into the documentation: tables between a page's markers, and the plot.

    python -m benchmarks.pages

reads ``benchmarks/results/peers.json`` and ``scaling.json``, as ``--json`` of :mod:`benchmarks.peers` and
:mod:`benchmarks.scaling` wrote them, and rewrites ``docs/performance.md`` and ``docs/scaling.svg``. Measures nothing.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import scaling
from benchmarks.peers import report
from benchmarks.peers.results import Results
from benchmarks.scaling import Scaling

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "scaling.svg"


def filled(page: str, parts: Mapping[str, str]) -> str:
    """A page with the text between ``<!-- NAME -->`` and ``<!-- /NAME -->`` replaced.

    Raises:
        ValueError: The page lacks a marker.
    """
    for name, text in parts.items():
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not between.search(page):
            raise ValueError(f"no <!-- {name} --> … <!-- /{name} --> in the page")
        page = between.sub(lambda found, text=text: f"{found.group(1)}{text}\n{found.group(2)}", page)  # type: ignore[misc]
    return page


def main() -> int:
    """Rewrite the page and the plot."""
    grown = Scaling.from_json(json.loads((RESULTS / "scaling.json").read_text()))
    beside = Results.from_json(json.loads((RESULTS / "peers.json").read_text()))
    parts = {"peers": report.tables(beside), "scaling": scaling.tables(grown)}
    PAGE.write_text(filled(PAGE.read_text(), parts))
    PLOT.write_text(scaling.plot(grown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
