"""``sagellm version``."""

from __future__ import annotations

from typing import Annotated

import typer

from sagellm.packages import versions

from .console import output_console, print_json


def version(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show the versions of the parts that are installed."""
    found = versions()
    if as_json:
        print_json(found)
        return
    for name, installed in found.items():
        output_console().print(f"{name} {installed or 'not installed'}")
