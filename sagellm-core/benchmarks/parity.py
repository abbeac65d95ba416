"""Write the parity table of ``docs/models.md``: each architecture and variant beside ``transformers``, at tiny size.

Run from the package's root: ``python benchmarks/parity.py``. It prints what it writes; ``--check`` writes nothing and
fails where a row is beyond the tolerance.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import parity  # noqa: E402  of the tests, which compare the same way
import tiny  # noqa: E402
from sagellm_core import models  # noqa: E402
from sagellm_core.executor.backends import open_backend  # noqa: E402
from sagellm_core.loading import open_checkpoint  # noqa: E402
from sagellm_protocol.devices import DType  # noqa: E402

DOCUMENT = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- parity: begin -->", "<!-- parity: end -->"
BACKENDS = ("cpu", "reference")


def row(name: str, backend: str) -> tuple[str, bool]:
    """A line of the table, and whether it is within the tolerance."""
    reference = tiny.make(name)
    ops = open_backend(backend, dtype="float32", threads=1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = open_checkpoint(tiny.save(reference, Path(folder)))
        found = parity.follow(reference, models.load(checkpoint, ops, DType.FLOAT32), ops)
    verdict = "yes" if found.greedy_equal else "no"
    architecture = {**tiny.RECIPES, **tiny.FOREIGN}[name].architecture
    line = f"| `{architecture}` | {name} | {backend} | {found.difference:.0e} | {verdict} |"
    return line, found.greedy_equal and found.difference < parity.TOLERANCE


def main() -> int:
    """Measure every row, write the document, and say whether all are within the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    rows = [row(name, backend) for name in (*sorted(tiny.RECIPES), *sorted(tiny.FOREIGN)) for backend in BACKENDS]
    head = ["| architecture | variant | backend | largest difference of a logit | greedy tokens equal |"]
    table = "\n".join([*head, "|---|---|---|---|---|", *(line for line, _ in rows)])
    print(table)
    if not check:
        before, rest = DOCUMENT.read_text().split(BEGIN)
        DOCUMENT.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")
    return 0 if all(good for _, good in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
