"""A front's line to its core: what is sent, what comes, how long ago, and statistics on request.

Knows the messages; nothing of requests, text or how they travel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Literal

from sagellm_core.adapters.base import AdapterRef
from sagellm_core.core.request import CoreOutput, CoreRequest, CoreStats, PoolRequest
from sagellm_core.transport.base import CoreClient
from sagellm_core.transport.messages import (
    Abort,
    AdapterChecked,
    Add,
    CheckAdapter,
    Control,
    Controlled,
    CoreMessage,
    ForgetAdapter,
    KVChanges,
    Outputs,
    Ping,
    Pong,
    Pool,
    Ready,
    Teach,
    Watch,
    WelcomeAdapter,
)
from sagellm_protocol.errors import ErrorCode, SageLLMError

STATS_WAIT_S = 0.25
"""How long statistics wait for a core that is in the middle of a step, before the last ones known are given."""


class CoreLink:
    """One core, from its start to its end.

    Args:
        client: The way to it, not started yet.
        take: Takes each output.
        take_kv: Takes each report of changes in the prefix cache.
        lose: Is told, once, why the core ended unasked.

    Attributes:
        lost: Whether it has ended, asked or not.
        stats: As last known.
    """

    def __init__(
        self,
        client: CoreClient,
        take: Callable[[CoreOutput], None],
        take_kv: Callable[[KVChanges], None],
        lose: Callable[[str], None],
    ) -> None:
        self.lost = False
        self.stats: CoreStats | None = None
        self._client = client
        self._on_output = take
        self._on_kv = take_kv
        self._on_loss = lose
        self._heard_s: float | None = None
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._controls: dict[int, asyncio.Future[Controlled]] = {}
        self._checks: dict[int, asyncio.Future[str]] = {}
        self._numbers = count()
        self._taught = False

    @property
    def silence_s(self) -> float | None:
        """Seconds since something came; ``None`` where nothing can any more, or has yet."""
        return None if self.lost or self._heard_s is None else time.monotonic() - self._heard_s

    async def start(self) -> Ready:
        """Start the core and return once it is ready.

        Raises:
            SageLLMError: It could not start; the root cause.
        """
        ready = await self._client.start(self._take, self._lose)
        self._heard_s = time.monotonic()
        return ready

    def add(self, request: CoreRequest) -> None:
        """Have a request worked on."""
        self._client.send(Add(request))

    def pool(self, request: PoolRequest) -> None:
        """Have vectors made."""
        self._client.send(Pool(request))

    def teach(self, vocabulary: str) -> None:
        """Say how tokens are spelt, which the first grammar needs; said once, whatever is asked."""
        if not self._taught:
            self._client.send(Teach(vocabulary))
            self._taught = True

    async def check_adapter(self, path: str) -> str:
        """Have the core see whether the adapter in a folder fits; its key.

        Raises:
            SageLLMError: What is wrong with it, or that the core ended meanwhile.
        """
        if self.lost:
            raise _gone()
        number = next(self._numbers)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._checks[number] = answer
        self._client.send(CheckAdapter(number, path))
        try:
            return await answer
        finally:
            self._checks.pop(number, None)

    def welcome_adapter(self, adapter: AdapterRef) -> None:
        """Say that an adapter is served from now on."""
        if not self.lost:
            self._client.send(WelcomeAdapter(adapter))

    def forget_adapter(self, key: str) -> None:
        """Say that an adapter is served no more."""
        if not self.lost:
            self._client.send(ForgetAdapter(key))

    @property
    def taught(self) -> bool:
        """Whether it was said."""
        return self._taught

    def abort(self, ticket: int, index: int | None = None) -> None:
        """Have a request, or one continuation of it, forgotten."""
        if not self.lost:
            self._client.send(Abort(ticket, index))

    def watch(self) -> None:
        """Have changes of the prefix cache reported from now on."""
        if not self.lost:
            self._client.send(Watch())

    async def control(self, action: Literal["sleep", "wake", "reload"], level: int = 1, path: str = "") -> Ready:
        """Have the core change what it holds in memory; the core as it is then.

        Raises:
            SageLLMError: Why it was not done, or that the core ended meanwhile.
        """
        if self.lost:
            raise SageLLMError(ErrorCode.ENGINE_FAILED, "the engine core has ended")
        number = next(self._numbers)
        answer = self._controls[number] = asyncio.get_running_loop().create_future()
        self._client.send(Control(number, action, level, path))
        try:
            answered: Controlled = await answer
        finally:
            self._controls.pop(number, None)
        failure = answered.failure
        if failure is not None:
            raise SageLLMError(ErrorCode(failure.code), failure.message, failure.param)
        return answered.ready

    async def refresh(self) -> None:
        """Bring :attr:`stats` up to date, unless the core takes too long to answer."""
        if self.lost:
            return
        number = next(self._numbers)
        answer = self._pings[number] = asyncio.get_running_loop().create_future()
        self._client.send(Ping(number))
        await asyncio.wait([answer], timeout=STATS_WAIT_S)
        self._pings.pop(number, None)

    async def stop(self) -> None:
        """End the core and release everything; who still waits for an answer is told that none comes."""
        self.lost = True
        await self._client.stop()
        self._give_up(_gone())

    def logs(self, lines: int) -> Sequence[str]:
        """The last lines the core wrote, where they are kept apart."""
        return self._client.logs(lines)

    def _take(self, message: CoreMessage) -> None:
        self._heard_s = time.monotonic()
        if isinstance(message, Outputs):
            for output in message.outputs:
                self._on_output(output)
        elif isinstance(message, KVChanges):
            self._on_kv(message)
        elif isinstance(message, Controlled):
            asked = self._controls.get(message.number)
            if asked is not None and not asked.done():
                asked.set_result(message)
        elif isinstance(message, AdapterChecked):
            check = self._checks.get(message.number)
            if check is not None and not check.done():
                _settle(check, message)
        elif isinstance(message, Pong):
            self.stats = message.stats
            waiting = self._pings.pop(message.number, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    def _lose(self, reason: str) -> None:
        self.lost = True
        for waiting in self._pings.values():
            waiting.cancel()
        self._pings.clear()
        self._give_up(SageLLMError(ErrorCode.ENGINE_FAILED, reason))
        self._on_loss(reason)

    def _give_up(self, error: SageLLMError) -> None:
        waited_for: list[asyncio.Future[Any]] = [*self._controls.values(), *self._checks.values()]
        for asked in waited_for:
            if not asked.done():
                asked.set_exception(error)


def _settle(asked: asyncio.Future[str], message: AdapterChecked) -> None:
    if message.key is not None:
        asked.set_result(message.key)
        return
    assert message.failure is not None
    failure = message.failure
    asked.set_exception(SageLLMError(ErrorCode(failure.code), failure.message, failure.param))


def _gone() -> SageLLMError:
    return SageLLMError(ErrorCode.UNAVAILABLE, "the engine core has ended")
