"""Which request a log line is about: an id that goes along with the work, and a filter that notes it on every record.

A request is named by its trace, which stays the same from the caller's ``X-Request-Id`` to the engine's core. Knows
nothing of where log lines go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

T = TypeVar("T")

NOBODY = "-"
"""Stands where a line is about no request."""
FORMAT = "%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s"
"""What our commands write; :class:`RequestIds` provides ``request_id``."""

# Goes with the task or thread, as context variables do; it holds nothing that outlives them.
_NAMED: ContextVar[str | None] = ContextVar("sagellm_request", default=None)


def named() -> str | None:
    """The id of the request that is being worked on here, if any."""
    return _NAMED.get()


def name_of(request: object) -> str | None:
    """What log lines call a request: its trace, or without one its own id."""
    name = getattr(request, "trace_id", None) or getattr(request, "request_id", None)
    return None if name is None else str(name)


@contextmanager
def naming(request_id: str | None) -> Iterator[None]:
    """Work on a request within the block. Not for generators: their callers would go by its name."""
    token = _NAMED.set(request_id)
    try:
        yield
    finally:
        _NAMED.reset(token)


def unnamed(function: Callable[..., T], *args: object) -> T:
    """Call a function on nobody's behalf: tasks that it starts outlive the request that happened to need them."""

    def call() -> T:
        _NAMED.set(None)
        return function(*args)

    return copy_context().run(call)


class RequestIds(logging.Filter):
    """Gives each record the attribute ``request_id``. Belongs on handlers: loggers do not ask for their children."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, and say which request it is about."""
        if not hasattr(record, "request_id"):
            record.request_id = named() or NOBODY
        return True


def configure(level: int | str | None = None, template: str = FORMAT) -> None:
    """Have the root logger write to standard error with request ids, unless it has handlers already.

    Args:
        level: Of the root logger; left alone when absent.
        template: In the style of ``logging``, with ``%(request_id)s``.
    """
    handler = logging.StreamHandler()
    handler.addFilter(RequestIds())
    logging.basicConfig(level=level, format=template, handlers=[handler])
