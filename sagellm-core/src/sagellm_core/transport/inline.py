"""A core in a thread of the front's own process.

Messages pass by reference; neither side changes one it has sent. Knows nothing of what is in them.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from sagellm_protocol.engine import EngineSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .base import CoreFactory
from .failure import failure_of
from .messages import CoreMessage, Failed, FrontMessage, Hello, Ready, Stop
from .serve import serve

_FRONT = 0


class InlineChannel:
    """The core's end: a queue in, a callable out."""

    def __init__(self, send: Callable[[CoreMessage], None]) -> None:
        self.inbox: queue.SimpleQueue[FrontMessage | None] = queue.SimpleQueue()  # None wakes, and says nothing
        self._send = send

    def receive(self, timeout_s: float) -> Sequence[tuple[Hashable, FrontMessage]]:
        """All that has arrived."""
        arrived: list[tuple[Hashable, FrontMessage]] = []
        try:
            message = self.inbox.get(timeout_s > 0, timeout_s or None)
            while True:
                if message is not None:
                    arrived.append((_FRONT, message))
                message = self.inbox.get_nowait()
        except queue.Empty:
            return arrived

    def wake(self) -> None:
        """Put nothing in the inbox, which ends a wait for something."""
        self.inbox.put(None)

    def send(self, front: Hashable, message: CoreMessage) -> None:
        """Hand a message to the front's event loop."""
        self._send(message)


class InlineClient:
    """Runs a core in a thread.

    Args:
        spec: Of the engine.
        path: Of the model.
        factory: Makes the core, in that thread.
    """

    def __init__(self, spec: EngineSpec, path: Path, factory: CoreFactory) -> None:
        self._spec = spec
        self._path = path
        self._factory = factory
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._channel = InlineChannel(self._post)
        self._thread: threading.Thread | None = None
        self._deliver: Callable[[CoreMessage], None] | None = None
        self._lost: Callable[[str], None] | None = None
        self._ready: asyncio.Future[Ready] | None = None

    async def start(self, deliver: Callable[[CoreMessage], None], lost: Callable[[str], None]) -> Ready:
        """Start the thread and return once the core is ready."""
        self._loop = asyncio.get_running_loop()
        self._deliver, self._lost = deliver, lost
        self._ready = self._loop.create_future()
        self._ended = asyncio.Event()
        self.send(Hello())
        self._thread = threading.Thread(target=self._run, name="sagellm-core", daemon=True)
        self._thread.start()
        try:
            return await self._ready
        except BaseException:
            await self.stop()
            raise

    def send(self, message: FrontMessage) -> None:
        """Put a message in the core's inbox."""
        self._channel.inbox.put(message)

    async def stop(self) -> None:
        """End the thread after the step it is in."""
        self._lost = None
        if self._thread is not None and self._ended is not None:
            self.send(Stop())
            await self._ended.wait()
            self._thread = None

    def logs(self, lines: int) -> Sequence[str]:
        """Nothing: what the core writes is the process's own."""
        return ()

    def _run(self) -> None:
        try:
            core = self._factory(self._spec, self._path)
            try:
                serve(core, self._channel)
            finally:
                core.stop()
        except BaseException as error:  # noqa: BLE001 - it ends the thread, and the front is told
            self._post(failure_of(error))
        finally:
            self._call(self._end)

    def _end(self) -> None:
        assert self._ended is not None
        self._ended.set()

    def _post(self, message: CoreMessage) -> None:
        self._call(self._take, message)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            # The loop is closed: nobody is left who could be told.
            self._channel.inbox.put(Stop())

    def _take(self, message: CoreMessage) -> None:
        assert self._ready is not None
        assert self._deliver is not None
        if isinstance(message, Failed):
            if not self._ready.done():
                self._ready.set_exception(SageLLMError(ErrorCode(message.code), message.message, message.param))
            elif self._lost is not None:
                self._lost(message.message)
        elif isinstance(message, Ready):
            if not self._ready.done():
                self._ready.set_result(message)
        else:
            self._deliver(message)
