"""Where words for people go: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console


def output_console() -> Console:
    """Console for results."""
    return Console(highlight=False)


def error_console() -> Console:
    """Console for progress, notes and errors; never mixed into results."""
    return Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """Write one JSON object for a script to read."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()
