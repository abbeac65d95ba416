"""Engines in processes of their own, each behind an engine server on this machine.

Costs a hop over HTTP; keeps an engine's crash, memory and output apart from this process. They end when this process
does, unless they are kept in a folder (:mod:`.kept`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sagellm_control_plane.remote.client import RemoteEngine
from sagellm_control_plane.remote.orders import Orders, read_report
from sagellm_protocol import EngineSpec, EngineState, ErrorCode, SageLLMError
from sagellm_protocol.remote import KEEPALIVE_S

from . import kept
from .folder import EngineFolder

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
        env: Variables of their environment beside this process's own.
        keep_in: Let them outlive this process; how they are found again, and their logs, are there.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        keepalive_s: float = KEEPALIVE_S,
        drain_s: float = 0.0,
        *,
        env: Mapping[str, str] | None = None,
        keep_in: Path | None = None,
    ) -> None:
        self._env = dict(env or {})
        self._keep_in = keep_in
        self._drain_s = drain_s
        self._host = host
        self._port = port
        self._keepalive_s = keepalive_s

    def keeping(self, folder: Path) -> SubprocessLauncher:
        """One like this, whose engines outlive this process."""
        return SubprocessLauncher(
            self._host, self._port, self._keepalive_s, self._drain_s, env=self._env, keep_in=folder
        )

    async def adopt(self, spec: EngineSpec, engine_id: str) -> kept.KeptHandle | None:
        """The engine of that id if it outlived whoever started it, starting ones included."""
        if self._keep_in is None:
            return None
        return await kept.adopt(engine_id, EngineFolder.of(engine_id, self._keep_in))

    async def start(self, spec: EngineSpec, engine_id: str) -> SubprocessHandle | kept.KeptHandle:
        """Start a server and return once its engine serves.

        Raises:
            SageLLMError: With the root cause; nothing is left running.
        """
        key = secrets.token_urlsafe(32)
        env = {**os.environ, **self._env}
        if self._keep_in is not None:
            orders = self._orders(spec, key, None, -1)
            return await kept.start(orders, engine_id, EngineFolder.of(engine_id, self._keep_in), env)
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sagellm_control_plane.remote"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(writing,),
                env=env,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        handle = SubprocessHandle(engine_id, process)
        orders = self._orders(spec, key, os.getpid(), writing)
        try:
            await _give(process, orders)
            report = await read_report(reading)
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

    def _orders(self, spec: EngineSpec, key: str, parent_pid: int | None, report_fd: int) -> Orders:
        return Orders(
            spec=spec,
            host=self._host,
            port=self._port,
            api_key=key,
            drain_s=self._drain_s,
            keepalive_s=self._keepalive_s,
            parent_pid=parent_pid,
            report_fd=report_fd,
        )


async def _give(process: asyncio.subprocess.Process, orders: Orders) -> None:
    assert process.stdin is not None
    process.stdin.write(orders.model_dump_json().encode())
    # One that dies at once is told by its report, or the lack of one.
    with contextlib.suppress(ConnectionError):
        await process.stdin.drain()
    process.stdin.close()


class Options(BaseModel):
    """What the launcher may be told."""

    model_config = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    env: dict[str, str] = {}


def create(**options: Any) -> SubprocessLauncher:
    """Entry point ``subprocess`` of the group ``sagellm.launchers``.

    Args:
        options: ``host`` and ``port`` to bind, and ``env``, variables of the environment.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` naming what is unknown or out of range.
    """
    try:
        told = Options(**options)
    except ValidationError as error:
        raise SageLLMError.from_validation(error, "launch") from error
    return SubprocessLauncher(told.host, told.port, env=told.env)
