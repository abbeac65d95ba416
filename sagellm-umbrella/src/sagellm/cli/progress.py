"""Progress for people: on standard error, and only where somebody is looking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sagellm_protocol import EngineSpec

from .console import error_console

if TYPE_CHECKING:
    from sagellm_core.store import Progress as FetchProgress

Made = TypeVar("Made")


@contextmanager
def loading(spec: EngineSpec, making: AbstractContextManager[Made]) -> Iterator[Made]:
    """Show that a model is being loaded while ``making`` is entered."""
    with ExitStack() as stack:
        with error_console().status(f"loading {spec.model} …"):
            made = stack.enter_context(making)
        yield made


@contextmanager
def fetching(name: str) -> Iterator[Callable[[FetchProgress], None]]:
    """Show how far a fetch of ``name`` is; yields what is to be told of it."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=error_console(), transient=True) as bars:
        task = bars.add_task(name, total=None)

        def report(progress: FetchProgress) -> None:
            where = f" ({progress.source})" if progress.source else ""
            bars.update(
                task, description=f"{progress.stage} {name}{where}", completed=progress.done, total=progress.total
            )

        yield report
