"""A core's process started before it is known what it shall run, so that its imports go on beside everyone else's.

Most of a start is the backend's libraries being imported, by one processor. Imports nothing that takes time itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .transport.spawn import CoreProcess

_PREPARE = "sagellm_core.executor.backends:import_backends"


class _Waiting:
    """One process, until it is taken."""

    def __init__(self, process: CoreProcess) -> None:
        self._process: CoreProcess | None = process

    def take(self) -> CoreProcess | None:
        process, self._process = self._process, None
        return process


_waiting: ContextVar[_Waiting | None] = ContextVar("sagellm_core_waiting", default=None)


@contextmanager
def core_ahead() -> Iterator[None]:
    """Start a core's process; the first engine that starts in this context, its tasks and threads runs in it.

    Where none did by the end, it is ended.
    """
    waiting = _Waiting(CoreProcess(_PREPARE))
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)
        left = waiting.take()
        if left is not None:
            left.discard()


def take() -> CoreProcess | None:
    """The process that was started ahead, for the caller to run; ``None`` where there is none, or it is taken."""
    waiting = _waiting.get()
    return None if waiting is None else waiting.take()
