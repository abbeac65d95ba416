"""A whole engine, front and core and a real model, in one thread and turn by turn; its books are checked at every one.

What happens in between happens in the same order each time: threads that compile and read are waited for, drafts are
not timed, and deadlines pass when they are told to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sagellm_core.core.build import build_core
from sagellm_core.core.loop import EngineCore
from sagellm_core.front.engine import FrontEngine
from sagellm_core.transport.messages import CoreMessage, FrontMessage, Hello, Ready
from sagellm_core.transport.serve import Service
from sagellm_protocol import EngineSpec, ErrorEvent, Request, StreamEvent
from sagellm_protocol.events import DeltaEvent, EndEvent, is_terminal
from sagellm_protocol.responses import Response, ResponseBuilder

T = TypeVar("T")
MOST_TURNS = 5000
"""More than any test needs: a request that is not over by then hangs."""
PATIENCE_S = 30.0
"""Longest that threads may leave everybody waiting."""


class PutForward(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put forward."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


class _Client:
    """Both ends of a transport, with a core that makes a turn when it is told to."""

    def __init__(self, spec: EngineSpec, path: Path) -> None:
        self._spec = spec
        self._path = path
        self._inbox: list[FrontMessage] = []
        self._ready: Ready | None = None
        self._deliver: Callable[[CoreMessage], None] | None = None
        self._service: Service | None = None
        self.core: EngineCore | None = None
        self.woken = False

    # -- the front's end ----------------------------------------------------------------------------------------------

    async def start(self, deliver: Callable[[CoreMessage], None], lost: Callable[[str], None]) -> Ready:
        self._deliver = deliver
        self.core = build_core(self._spec, self._path)
        channel: Any = _Channel(self)
        self._service = Service(self.core, channel)
        self.send(Hello())
        self.turn()
        assert self._ready is not None
        return self._ready

    def send(self, message: FrontMessage) -> None:
        self._inbox.append(message)

    async def stop(self) -> None:
        if self.core is not None:
            self.core.stop()
            self.core = self._service = None

    def logs(self, lines: int) -> Sequence[str]:
        return ()

    # -- the core's end -----------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether a turn would do nothing."""
        core = self.core
        return core is None or not (self._inbox or self.woken or core.has_work or core.has_chores)

    def turn(self) -> None:
        """Let the core do one thing after another: what arrived, what was compiled and read, and a step."""
        if self._service is None or self.core is None:
            return
        self.woken = False
        self._service.turn()
        self.core.check_integrity()
        counts = self.core.stats()
        states = counts.free_blocks + counts.cached_blocks + counts.used_blocks + counts.leased_blocks
        assert states == counts.total_blocks
        self._wait_for_threads(self.core)

    def arrived(self) -> list[FrontMessage]:
        inbox, self._inbox = self._inbox, []
        return inbox

    def take(self, message: CoreMessage) -> None:
        if isinstance(message, Ready):
            self._ready = message
        else:
            assert self._deliver is not None
            self._deliver(message)

    def _wait_for_threads(self, core: EngineCore) -> None:
        """Until what was to be compiled is, and adapters and blocks that were to be read are there."""
        pool = getattr(core._grammars, "_pool", None)
        if pool is not None:
            pool.submit(int).result(PATIENCE_S)
        if core.adapters is not None:
            store: Any = core.adapters._adapters
            store._pool.submit(int).result(PATIENCE_S)
        if core._offload is not None:
            worker = core._offload._worker
            with worker._changed:
                quiet = worker._changed.wait_for(lambda: not (worker._writing or worker._may_read()), 0.0)
            for _ in range(int(PATIENCE_S * 1e4)):
                if quiet:
                    return
                time.sleep(1e-4)
                with worker._changed:
                    quiet = not (worker._writing or worker._may_read())
            raise AssertionError("blocks are read and written for ever")


class _Channel:
    def __init__(self, client: _Client) -> None:
        self._client = client

    def receive(self, timeout_s: float) -> Sequence[tuple[Hashable, FrontMessage]]:
        return [(0, message) for message in self._client.arrived()]

    def wake(self) -> None:
        self._client.woken = True

    def send(self, front: Hashable, message: CoreMessage) -> None:
        self._client.take(message)


@dataclass
class Asked:
    """A request, and what came of it."""

    request: Request
    task: asyncio.Task[None]
    events: list[StreamEvent] = field(default_factory=list)

    @property
    def error(self) -> ErrorEvent | None:
        last = self.events[-1] if self.events else None
        return last if isinstance(last, ErrorEvent) else None

    @property
    def completed(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], EndEvent)

    def response(self) -> Response:
        """The answer as its events tell it."""
        builder = ResponseBuilder(self.request.model)
        for event in self.events:
            builder.add(event)
        return builder.response()

    def said(self) -> dict[int, list[int]]:
        """Tokens of each choice, however it ended."""
        tokens: dict[int, list[int]] = {index: [] for index in range(self.request.sampling.n)}
        for event in self.events:
            if isinstance(event, DeltaEvent):
                tokens[event.index].extend(event.token_ids)
        return tokens


class SteppedEngine:
    """An engine of ours that is driven by hand."""

    def __init__(self, spec: EngineSpec) -> None:
        self.loop = PutForward()
        self._client: _Client | None = None
        self.engine = FrontEngine(spec, lambda model, revision: Path(model), self._connect)
        self.until(self.engine.start())

    def _connect(self, spec: EngineSpec, path: Path) -> _Client:
        self._client = _Client(spec, path)
        return self._client

    @property
    def core(self) -> EngineCore:
        assert self._client is not None
        assert self._client.core is not None
        return self._client.core

    def turn(self) -> None:
        """One turn of the core, and what the front makes of it."""
        if self._client is not None:
            self._client.turn()
        self.spin()

    def spin(self) -> None:
        """Let the front do all that it can without the core."""
        self.loop.run_until_complete(_spin())

    def until(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of some work of the front, while the core goes on."""
        task = self.loop.create_task(work)
        self.wait_for(task.done)
        return task.result()

    def wait_for(self, done: Callable[[], bool], most_turns: int = MOST_TURNS) -> None:
        """Make turns until something is so."""
        idle_until = time.monotonic() + PATIENCE_S
        for _ in range(most_turns):
            self.turn()
            while not done() and (self._client is None or self._client.idle):
                assert time.monotonic() < idle_until, "everybody waits, and for nothing"
                self.loop.run_until_complete(asyncio.sleep(1e-4))
            if done():
                return
        raise AssertionError(f"not done after {most_turns} turns")

    def ask(self, request: Request) -> Asked:
        """Ask it for something; it is in flight from the next turn on."""
        events: list[StreamEvent] = []

        async def listen() -> None:
            async for event in self.engine.generate(request):
                assert not (events and is_terminal(events[-1])), "something came after the end"
                events.append(event)

        asked = Asked(request, self.loop.create_task(listen()), events)
        self.spin()
        return asked

    def answer(self, request: Request) -> Asked:
        """Ask it for one thing and wait for the answer."""
        asked = self.ask(request)
        self.wait_for(asked.task.done)
        asked.task.result()
        return asked

    def stop(self) -> None:
        """End it, and everything of it."""
        self.until(self.engine.stop())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


async def _spin() -> None:
    for _ in range(8):
        await asyncio.sleep(0)
