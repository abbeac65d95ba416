"""Lets others end what a task does, with an error of their choice, and without a task in between.

A task in between costs a turn of the event loop before the work begins and another once it is done. Knows nothing of
the work.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class Leash:
    """Around the work, in the task that does it: ``with Leash() as leash: ...``."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._held = False
        self._error: Exception | None = None
        self._cancellations = 0

    def end(self, error: Exception) -> None:
        """Cancel the work, whose clean-up runs to its end, and raise ``error`` in its place; the first call counts.

        For others than the task itself. Work that is over is not disturbed.
        """
        if self._held and self._error is None:
            self._error = error
            self._task.cancel()

    def __enter__(self) -> Leash:
        self._held = True
        # Before Python 3.11 tasks do not count: then whoever else cancels it meanwhile is told of the error, too.
        self._cancellations = self._task.cancelling() if hasattr(self._task, "cancelling") else 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        if self._error is None:
            return
        left = self._task.uncancel() if hasattr(self._task, "uncancel") else 0
        if kind is asyncio.CancelledError and left <= self._cancellations:
            raise self._error from None
