"""What a source of models is: something that puts a catalogue model's files into a folder, or says why it cannot.

Knows nothing of any one source, nor of whether the files are right: :mod:`.pull` checks them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from sagellm_protocol.errors import ErrorCode

from .catalogue import CatalogueModel

Stage = Literal["waiting", "probing", "downloading", "extracting", "verifying"]


@dataclass(frozen=True)
class Progress:
    """How far a fetch is.

    Attributes:
        stage: What is being done.
        source: Where from (``hub``, ``index``); absent while no source is in use.
        done: Bytes so far in this stage.
        total: Bytes of this stage, where that is known.
    """

    stage: Stage
    source: str | None = None
    done: int = 0
    total: int | None = None


Report = Callable[[Progress], None]


class CalledOffError(Exception):
    """Whoever wanted a fetch wants it no longer."""


def until(called_off: threading.Event, report: Report | None = None) -> Report:
    """A report that ends the fetch it is told of once ``called_off`` is set: threads cannot be cancelled from outside.

    Raises:
        CalledOffError: From the report, and so out of :func:`pull` and :func:`resolve`.
    """

    def told(progress: Progress) -> None:
        if called_off.is_set():
            raise CalledOffError
        if report is not None:
            report(progress)

    return told


class SourceUnavailableError(Exception):
    """A source cannot give the files; the message says why.

    Attributes:
        code: What to raise if no other source can either.
    """

    def __init__(self, reason: str, code: ErrorCode = ErrorCode.UNAVAILABLE) -> None:
        super().__init__(reason)
        self.code = code


class Source(Protocol):
    """Fetches catalogue models."""

    name: str

    def fetch(self, model: CatalogueModel, into: Path, report: Report) -> None:
        """Put every file of ``model`` under ``into``, an empty folder that is thrown away afterwards.

        Raises:
            SourceUnavailableError: When it cannot.
        """
        ...
