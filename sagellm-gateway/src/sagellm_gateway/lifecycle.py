"""Whether this gateway takes requests, and how those in flight are ended when it stops.

Knows nothing of signals or sockets; a server tells it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from sagellm_protocol import ErrorCode, SageLLMError

T = TypeVar("T")


class ClientGoneError(Exception):
    """The caller closed the connection before its answer was complete; there is nobody to tell."""


class Lifecycle:
    """Counts requests in flight, refuses new ones once draining, and ends the rest when their time is up."""

    def __init__(self) -> None:
        self.draining = False
        self.in_flight = 0
        """Requests inside the gateway; kept by the drain middleware."""
        self._expired = False
        self._ends: set[Callable[[], object]] = set()

    def drain(self) -> None:
        """Take nothing new. Safe in a signal handler."""
        self.draining = True

    def expire(self) -> None:
        """End every request in flight with an error that says so."""
        self._expired = True
        for end in list(self._ends):
            end()

    def refuse_if_draining(self) -> None:
        """Raise ``UNAVAILABLE`` once draining."""
        if self.draining:
            raise SageLLMError(
                ErrorCode.UNAVAILABLE,
                "the gateway is shutting down and takes no new requests; try again later",
            )

    async def attend(self, work: Coroutine[Any, Any, T], receive: Receive) -> T:
        """Run ``work`` for a caller, and cancel it when the caller goes away or the gateway's time is up.

        Args:
            work: What is done for the caller; its clean-up runs to its end before this returns.
            receive: The request's channel; its body has been read.

        Raises:
            ClientGoneError: The caller closed the connection.
            SageLLMError: ``UNAVAILABLE`` when the gateway stopped first; or what ``work`` raised.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(receive))
        gone.add_done_callback(lambda _: task.cancel())
        self._ends.add(task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            if gone.done() and not gone.cancelled():
                raise ClientGoneError from None
            if self._expired:
                raise SageLLMError(
                    ErrorCode.UNAVAILABLE, "the gateway stopped before the answer was complete"
                ) from None
            raise
        finally:
            self._ends.discard(task.cancel)
            gone.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
