"""Progress for people: on standard error, and only where somebody is looking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from .console import error_console
from .fetch import Report

if TYPE_CHECKING:
    from sagellm_core.store import Progress as FetchProgress

Made = TypeVar("Made")


@contextmanager
def activity(words: str) -> Iterator[Report]:
    """Show ``words`` while something goes on; yields what is to be told of a fetch meanwhile.

    Where nobody is looking a fetch is worth one line: it is what a log's reader waits for.
    """
    console, noted = error_console(), False
    with console.status(words) as status:

        def report(progress: FetchProgress) -> None:
            nonlocal noted
            if console.is_terminal:
                over = progress.stage == "verifying" and progress.done == progress.total
                status.update(words if over else described(progress))
            elif progress.stage == "downloading" and not noted:
                noted = True
                size = f" ({progress.total / 1e6:.0f} MB)" if progress.total else ""
                console.print(f"downloading the model from the {progress.source}{size}; later starts find it here")

        yield report


def described(progress: FetchProgress) -> str:
    """A fetch in words, as ``downloading the model from the hub: 12 of 98 MB``."""
    source = f" from the {progress.source}" if progress.source else ""
    total = f" of {progress.total / 1e6:.0f} MB" if progress.total else ""
    return {
        "waiting": "waiting for another program that fetches the model …",
        "probing": f"looking for the model on the {progress.source} …",
    }.get(progress.stage, f"{progress.stage} the model{source}: {progress.done / 1e6:.0f}{total}")


@contextmanager
def loading(model: str, making: Callable[[Report], AbstractContextManager[Made]]) -> Iterator[Made]:
    """Show that ``model`` is being loaded while what ``making`` makes is entered."""
    with ExitStack() as stack:
        with activity(f"loading {model} …") as report:
            made = stack.enter_context(making(report))
        yield made


@contextmanager
def fetching(name: str) -> Iterator[Report]:
    """Show a bar of how far a fetch of ``name`` is; yields what is to be told of it."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=error_console(), transient=True) as bars:
        task = bars.add_task(name, total=None)

        def report(progress: FetchProgress) -> None:
            where = f" ({progress.source})" if progress.source else ""
            bars.update(
                task, description=f"{progress.stage} {name}{where}", completed=progress.done, total=progress.total
            )

        yield report
