"""``sagellm doctor``: what is here, what is missing, and the fix."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from sagellm.checks import Level, all_findings

from .console import output_console, print_json

_MARKS = {
    Level.OK: "[green]ok[/]",
    Level.NOTE: "[cyan]note[/]",
    Level.WARNING: "[yellow]warning[/]",
    Level.PROBLEM: "[bold red]problem[/]",
}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Check this installation; exits 1 when serving a model would fail."""
    findings = list(all_findings())
    problems = sum(finding.level is Level.PROBLEM for finding in findings)
    if as_json:
        print_json({"ok": problems == 0, "findings": [asdict(finding) for finding in findings]})
    else:
        console = output_console()
        for finding in findings:
            console.print(
                f"{_MARKS[finding.level]} {escape(finding.subject)}: {escape(finding.message)}", soft_wrap=True
            )
            if finding.fix:
                console.print(f"     → {escape(finding.fix)}", soft_wrap=True)
    if problems:
        raise typer.Exit(1)
