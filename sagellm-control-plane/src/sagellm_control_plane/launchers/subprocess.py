"""Engines in processes of their own, each behind an engine server on this machine.

Costs a hop over HTTP; keeps an engine's crash, memory and output apart from this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import Sequence

import anyio

from sagellm_control_plane.remote.__main__ import Orders, Report
from sagellm_control_plane.remote.client import RemoteEngine
from sagellm_protocol import EngineSpec, EngineState, ErrorCode, SageLLMError
from sagellm_protocol.remote import KEEPALIVE_S

LOG_LINES = 1000
TERM_S = 15.0
"""Between SIGTERM and SIGKILL."""
LAST_WORDS_S = 2.0
"""Longest that the end of its output is waited for: a process of its own may hold the pipe open after it."""


class SubprocessHandle:
    """An engine server that was started here; implements :class:`sagellm_protocol.EngineHandle`."""

    def __init__(self, engine_id: str, process: asyncio.subprocess.Process) -> None:
        self._engine_id = engine_id
        self._engine: RemoteEngine | None = None
        self._process = process
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._reader = asyncio.create_task(self._read(), name=f"output of {engine_id}")
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
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    async def reach(self, url: str, api_key: str) -> None:
        """Talk to the server."""
        self.url, self._engine = url, RemoteEngine(url, api_key=api_key)
        await self._engine.start()

    async def stop(self, timeout_s: float | None = None) -> None:
        """Drain for at most ``timeout_s``, then end the process: politely, and soon not so."""
        self._stopping = True
        try:
            if self._engine is not None:
                if timeout_s and self._process.returncode is None:
                    with anyio.move_on_after(timeout_s), contextlib.suppress(SageLLMError):
                        await self._engine.drain()
                await self._engine.stop()
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(signal.SIGTERM)
                with anyio.move_on_after(TERM_S):
                    await self._process.wait()
        finally:
            with anyio.CancelScope(shield=True):
                if self._process.returncode is None:
                    self._process.kill()
                await self._process.wait()
                await self._heard_out()
                self._reader.cancel()

    async def status(self) -> EngineState:
        """``ERROR`` once its process has ended without having been told to."""
        if self._process.returncode is not None:
            return EngineState.STOPPED if self._stopping else EngineState.ERROR
        return self._engine.info.state if self._engine is not None else EngineState.STARTING

    async def logs(self, lines: int = 100) -> Sequence[str]:
        """The last lines of its standard output and error."""
        return list(self._lines)[-lines:] if lines > 0 else []

    async def last_words(self) -> str:
        """How its process ended, and the end of what it wrote."""
        status = await self._process.wait()
        await self._heard_out()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        said = " | ".join(list(self._lines)[-5:])
        return f"{how}{': ' + said if said else ''}"

    async def _heard_out(self) -> None:
        await asyncio.wait({self._reader}, timeout=LAST_WORDS_S)

    async def _read(self) -> None:
        output = self._process.stdout
        assert output is not None
        while True:
            try:
                line = await output.readline()
            except ValueError:
                # Longer than the reader's limit, which has dropped it.
                continue
            if not line:
                return
            self._lines.append(line.decode(errors="replace").rstrip())


class SubprocessLauncher:
    """Starts engine servers; implements :class:`sagellm_protocol.Launcher`.

    Args:
        host: Address they bind.
        port: Theirs; 0 takes any free one.
        keepalive_s: Silence after which their streams send a sign of life.
        drain_s: Longest that requests in flight may take after a signal that did not come from here.
    """

    def __init__(
        self, host: str = "127.0.0.1", port: int = 0, keepalive_s: float = KEEPALIVE_S, drain_s: float = 0.0
    ) -> None:
        self._drain_s = drain_s
        self._host = host
        self._port = port
        self._keepalive_s = keepalive_s

    async def start(self, spec: EngineSpec, engine_id: str) -> SubprocessHandle:
        """Start a server and return once its engine serves.

        Raises:
            SageLLMError: With the root cause; nothing is left running.
        """
        key = secrets.token_urlsafe(32)
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sagellm_control_plane.remote"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(writing,),
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        handle = SubprocessHandle(engine_id, process)
        orders = Orders(
            spec=spec,
            host=self._host,
            port=self._port,
            api_key=key,
            drain_s=self._drain_s,
            keepalive_s=self._keepalive_s,
            parent_pid=os.getpid(),
            report_fd=writing,
        )
        try:
            await _give(process, orders)
            report = await _report(reading)
            if report is None:
                words = await handle.last_words()
                raise SageLLMError(ErrorCode.ENGINE_FAILED, f"engine {engine_id} did not start: {words}")
            if report.error is not None:
                raise SageLLMError.from_info(report.error)
            await handle.reach(report.url or "", key)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await handle.stop()
            raise
        return handle


async def _give(process: asyncio.subprocess.Process, orders: Orders) -> None:
    assert process.stdin is not None
    process.stdin.write(orders.model_dump_json().encode())
    # One that dies at once is told by its report, or the lack of one.
    with contextlib.suppress(ConnectionError):
        await process.stdin.drain()
    process.stdin.close()


async def _report(descriptor: int) -> Report | None:
    """What a server reports; ``None`` when it ends without a word."""
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb")
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        line = await reader.readline()
    finally:
        transport.close()
    return Report.model_validate_json(line) if line.strip() else None


def create() -> SubprocessLauncher:
    """Entry point ``subprocess`` of the group ``sagellm.launchers``."""
    return SubprocessLauncher()
