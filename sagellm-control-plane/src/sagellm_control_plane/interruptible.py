"""Awaiting something that others may call off, at next to no cost: it is done once for every event of every stream.

A cancel scope does the same and more, and takes longer than all else that is done here for an event. Knows nothing of
requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Interrupted(Exception):
    """What was awaited was called off, and has been cleaned up after."""


class Interruptible(Generic[T]):
    """An awaitable that :meth:`interrupt` ends with :class:`Interrupted`; await it once.

    The interruption reaches what is awaited as the cancellation of the future it is suspended on, once, just as
    cancelling the task would; the task itself is not cancelled. Work that is done by then is not disturbed, and its
    result stands.

    Args:
        work: What to await.
        limit_s: Seconds after which it is called off by itself. What is done at once costs no timer.
    """

    def __init__(self, work: Awaitable[T], limit_s: float | None = None) -> None:
        self._work = work
        self._limit_s = limit_s
        self._suspended_on: asyncio.Future[Any] | None = None
        self._interrupted = False
        self._undelivered = False

    def interrupt(self) -> None:
        """Call it off."""
        if not self._interrupted:
            self._interrupted = self._undelivered = True
            self._deliver()

    def __await__(self) -> Generator[Any, None, T]:
        steps = self._work.__await__()
        cancellations = 0
        timer: asyncio.TimerHandle | None = None
        try:
            future = next(steps)
            cancellations = _cancellations()
            if self._limit_s is not None:
                timer = asyncio.get_running_loop().call_later(self._limit_s, self.interrupt)
            while True:
                self._suspended_on = future
                if self._undelivered:
                    self._deliver()
                try:
                    yield future
                except GeneratorExit:
                    steps.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - whatever it is, it is for the work
                    self._suspended_on = None
                    future = steps.throw(error)
                else:
                    self._suspended_on = None
                    future = next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        except asyncio.CancelledError:
            # What was not delivered from here is others' to handle: of the task, cancelled in the same turn of the
            # loop, or of an interruptible around this one.
            if self._interrupted and not self._undelivered and _cancellations() == cancellations:
                raise Interrupted from None
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _deliver(self) -> None:
        # A step of the loop's own (``sleep(0)``) suspends on nothing: then the next future is cancelled.
        if self._suspended_on is not None and self._suspended_on.cancel():
            self._undelivered = False


def _cancellations() -> int:
    """How often the current task was cancelled; before Python 3.11 tasks do not say, and none counts."""
    counted = getattr(asyncio.current_task(), "cancelling", None)
    return 0 if counted is None else int(counted())
