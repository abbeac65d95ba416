"""The ``sagellm`` command: argument parsing, progress and messages for people. All work is done by the components."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .ahead import core_if_wanted


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        argv: Arguments after the program's name; those of the process when absent.
    """
    with core_if_wanted(sys.argv[1:] if argv is None else argv):
        # Imported only now: the core's process has the backend to import meanwhile.
        from .app import main as run

        return run(argv)


__all__ = ["main"]
