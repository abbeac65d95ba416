"""Engine servers that outlive the process which started them, and are taken up by the next.

What is known of one is in its folder alone; a handle made by who started it and one made later are the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence

import anyio

from sagellm_control_plane.remote.client import RemoteEngine
from sagellm_control_plane.remote.orders import Orders, read_report
from sagellm_protocol import EngineState, ErrorCode, SageLLMError

from .folder import EngineFolder, Whereabouts

log = logging.getLogger(__name__)
TERM_S = 15.0
"""Between SIGTERM and SIGKILL."""
REPORT_FD, LOCK_FD = 3, 4
"""Descriptors that its process inherits, beside the usual three."""
REACH_S = 10.0
"""Longest that one which is to be taken up may take to answer."""
LOOK_S = 0.05
"""Between two looks whether a process that may be nobody's child has ended."""


class KeptHandle:
    """An engine server with a folder; implements :class:`sagellm_protocol.EngineHandle`."""

    def __init__(self, engine_id: str, folder: EngineFolder, child: int | None = None) -> None:
        self._engine_id = engine_id
        self._folder = folder
        self._child = child
        self._engine: RemoteEngine | None = None
        self._stopping = False
        self.url: str | None = None
        """Where its server listens, once it serves."""

    @property
    def engine_id(self) -> str:
        """The id it was started under."""
        return self._engine_id

    @property
    def engine(self) -> RemoteEngine:
        """The client of its server."""
        assert self._engine is not None, "a handle is given out once its server was reached"
        return self._engine

    @property
    def pid(self) -> int | None:
        """The server's process."""
        return self._folder.pid()

    async def reach(self, whereabouts: Whereabouts) -> None:
        """Talk to the server."""
        self.url, self._engine = whereabouts.url, RemoteEngine(whereabouts.url, api_key=whereabouts.api_key)
        await self._engine.start()

    async def leave(self) -> None:
        """Let go of it; it goes on."""
        if self._engine is not None:
            await self._engine.stop()

    async def stop(self, timeout_s: float | None = None) -> None:
        """Drain for at most ``timeout_s``, then end the process: politely, and soon not so."""
        self._stopping = True
        try:
            if self._engine is not None:
                if timeout_s and self.runs():
                    with anyio.move_on_after(timeout_s), contextlib.suppress(SageLLMError):
                        await self._engine.drain()
                await self._engine.stop()
            self._folder.signal(signal.SIGTERM)
            with anyio.move_on_after(TERM_S):
                await self.ended()
        finally:
            with anyio.CancelScope(shield=True):
                if self.runs():
                    self._folder.signal(signal.SIGKILL)
                await self.ended()

    def runs(self) -> bool:
        """Whether its process does."""
        self._reap()
        return self._folder.running()

    async def ended(self) -> None:
        """Return once its process has ended."""
        while self.runs():  # noqa: ASYNC110 - the kernel tells nobody but a parent
            await asyncio.sleep(LOOK_S)

    async def status(self) -> EngineState:
        """``ERROR`` once its process has ended without having been told to."""
        if not self.runs():
            return EngineState.STOPPED if self._stopping else EngineState.ERROR
        return self._engine.info.state if self._engine is not None else EngineState.STARTING

    async def logs(self, lines: int = 100) -> Sequence[str]:
        """The last lines of its standard output and error, also those of before it was taken up."""
        return await asyncio.to_thread(self._folder.tail, lines)

    def _reap(self) -> None:
        if self._child is not None:
            # One that was taken up is no child of this process, and one that ended may have been collected by others.
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self._child, os.WNOHANG)[0] == 0:
                    return
            self._child = None


async def start(orders: Orders, engine_id: str, folder: EngineFolder, env: Mapping[str, str]) -> KeptHandle:
    """Start a server and return once its engine serves.

    Raises:
        SageLLMError: ``CONFLICT`` while one of that id runs; the root cause, and then nothing is left running.
    """
    lock = await asyncio.to_thread(folder.take)
    if lock is None:
        raise SageLLMError(
            ErrorCode.CONFLICT,
            f"engine {engine_id} runs already, as process {folder.pid()}; stop it first",
            "engine_id",
        )
    reading, writing = os.pipe()
    try:
        whole = orders.model_copy(update={"report_fd": REPORT_FD, "lock_fd": LOCK_FD, "folder": folder.path})
        child = await asyncio.to_thread(_spawn, whole, folder, env, writing, lock)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
        # From here on the engine's process alone holds it.
        os.close(lock)
    handle = KeptHandle(engine_id, folder, child)
    try:
        report = await read_report(reading)
        if report is None:
            await handle.ended()
            raise SageLLMError(
                ErrorCode.ENGINE_FAILED, f"engine {engine_id} did not start: {' | '.join(await handle.logs(5))}"
            )
        if report.error is not None:
            raise SageLLMError.from_info(report.error)
        await handle.reach(Whereabouts(url=report.url or "", api_key=orders.api_key or ""))
    except BaseException:
        with anyio.CancelScope(shield=True):
            await handle.stop()
        raise
    return handle


async def adopt(engine_id: str, folder: EngineFolder) -> KeptHandle | None:
    """Take up a server that runs, or is starting; ``None`` when none does, or it served no more and was ended.

    Called off, it leaves nothing running.
    """
    handle = KeptHandle(engine_id, folder)
    try:
        while handle.runs():
            whereabouts = await asyncio.to_thread(folder.whereabouts)
            if whereabouts is not None:
                await asyncio.wait_for(handle.reach(whereabouts), REACH_S)
                log.info("engine %s runs, as process %s, and is taken up", engine_id, handle.pid)
                return handle
            await asyncio.sleep(LOOK_S)
    except (SageLLMError, asyncio.TimeoutError) as error:
        said = str(error) or f"it did not answer within {REACH_S:g} s"
        log.warning("engine %s runs, and is ended for it does not serve: %s", engine_id, said)
        await handle.stop()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await handle.stop()
        raise
    return None


def _spawn(orders: Orders, folder: EngineFolder, env: Mapping[str, str], report: int, lock: int) -> int:
    """Start the server's process, in a group of its own: what a terminal sends to ours is not meant for it.

    Not by :mod:`subprocess` or asyncio, whose objects would complain of a process that is left, or end it. What it
    inherits is given to it alone, so that a process which another thread starts at this moment holds no lock of it.
    """
    with tempfile.TemporaryFile() as given, folder.log.open("ab") as output:
        given.write(orders.model_dump_json().encode())
        given.seek(0)
        targets = {0: given.fileno(), 1: output.fileno(), 2: output.fileno(), REPORT_FD: report, LOCK_FD: lock}
        # Away from the numbers that they are to have, which one could otherwise overwrite before its turn.
        sources = {to: fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 16) for to, source in targets.items()}
        try:
            return os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", "sagellm_control_plane.remote"],
                env,
                file_actions=[(os.POSIX_SPAWN_DUP2, source, to) for to, source in sources.items()],
                setpgroup=0,
            )
        finally:
            for source in sources.values():
                os.close(source)
