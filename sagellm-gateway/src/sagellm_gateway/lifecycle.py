"""Whether this gateway takes requests, and how those in flight are ended when it stops.

Knows nothing of signals or sockets; a server tells it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from sagellm_protocol import ErrorCode, SageLLMError

from .leash import Leash

T = TypeVar("T")


class ClientGoneError(Exception):
    """The caller closed the connection before its answer was complete; there is nobody to tell."""


class Lifecycle:
    """Counts requests in flight, refuses new ones once draining, and ends the rest when their time is up."""

    def __init__(self) -> None:
        self.draining = False
        self.in_flight = 0
        """Requests inside the gateway; kept by the drain middleware."""
        self._leashes: set[Leash] = set()

    def drain(self) -> None:
        """Take nothing new. Safe in a signal handler."""
        self.draining = True

    def expire(self) -> None:
        """End every request in flight with an error that says so."""
        for leash in self._leashes:
            leash.end(SageLLMError(ErrorCode.UNAVAILABLE, "the gateway stopped before the answer was complete"))

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
        with Leash() as leash:
            self._leashes.add(leash)
            gone = asyncio.ensure_future(_watch(receive, leash))
            try:
                return await work
            finally:
                gone.cancel()
                self._leashes.discard(leash)


async def _watch(receive: Receive, leash: Leash) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    leash.end(ClientGoneError())
