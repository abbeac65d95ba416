"""Engine servers as processes, started and stopped by callers without an event loop, under the names that SAGE knows.

The plane's own are started by :mod:`sagellm_control_plane.launchers`; the server is the same, and so is what it is
told. Engines end when this process does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagellm_protocol import EngineState, ErrorCode, SageLLMError
from sagellm_protocol.remote import KEEPALIVE_S

from .legacy.errors import BadValue
from .legacy.processes import engine_servers
from .legacy.translate import spec_of
from .remote.client import RemoteEngine

if TYPE_CHECKING:
    from .manager import ControlPlaneManager

LAST_LINES = 5


class EngineStatus(str, Enum):
    """Where an engine's process is."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


class EngineRuntime(str, Enum):
    """What an engine makes."""

    LLM = "llm"
    EMBEDDING = "embedding"


@dataclass
class EngineProcessInfo:
    """An engine's process."""

    engine_id: str
    model_id: str
    port: int
    gpu_ids: list[int]
    pid: int
    command: list[str]
    env_overrides: dict[str, str]
    runtime: EngineRuntime = EngineRuntime.LLM
    created_at: float = field(default_factory=time.time)
    status: EngineStatus = EngineStatus.STARTING
    stopped_at: float | None = None
    last_exit_code: int | None = None
    last_error: str | None = None


_OVER = (EngineStatus.STOPPED, EngineStatus.FAILED)


class _Run:
    """A process and what goes with it."""

    def __init__(self, info: EngineProcessInfo, process: subprocess.Popen[bytes], log_file: Path, api_key: str) -> None:
        self.info, self.process, self.log_file, self.api_key = info, process, log_file, api_key
        self.metadata: dict[str, Any] = {}
        self.watcher: threading.Thread | None = None


class EngineLifecycleManager:
    """Starts and stops engines; may be used from several threads.

    Args:
        python_executable: The interpreter they run in; this one if left out.
        host: Address they bind.
        stop_timeout: Seconds an engine has to end before it is killed.
        control_plane: Engines are registered there once they serve, and unregistered when they stop.
        max_stopped_engines: Those kept for inspection; :attr:`MAX_STOPPED_ENGINES` if left out.

    Raises:
        ValueError: For a value out of range.
    """

    MAX_STOPPED_ENGINES: int = 50

    def __init__(
        self,
        *,
        python_executable: str | None = None,
        host: str = "0.0.0.0",
        stop_timeout: float = 20.0,
        control_plane: ControlPlaneManager | None = None,
        max_stopped_engines: int | None = None,
    ) -> None:
        self.max_stopped_engines = self.MAX_STOPPED_ENGINES if max_stopped_engines is None else max_stopped_engines
        for name, value in (("stop_timeout", stop_timeout), ("max_stopped_engines", self.max_stopped_engines)):
            if not value >= 0:
                raise BadValue(f"{name} must be 0 or more (got {value!r})", name)
        self.python_executable = python_executable or sys.executable
        self.host = host
        self.stop_timeout = stop_timeout
        self._control_plane = control_plane
        self._runs: dict[str, _Run] = {}
        self._lock = threading.RLock()
        self._logs = Path(tempfile.mkdtemp(prefix="sagellm-engines-"))
        weakref.finalize(self, shutil.rmtree, self._logs, ignore_errors=True)

    @property
    def reserved_ports(self) -> set[int]:
        """Ports of engines that are not over."""
        with self._lock:
            return {run.info.port for run in self._runs.values() if run.info.status not in _OVER}

    def set_control_plane(self, control_plane: ControlPlaneManager | None) -> None:
        """Register engines there from now on."""
        self._control_plane = control_plane

    def discover_running_engines(self) -> list[dict[str, Any]]:
        """Engine servers on this machine, whoever started them; ``engine_id`` is ``None`` for those of others."""
        with self._lock:
            own = {run.process.pid: run.info.engine_id for run in self._runs.values()}
        return [{**found, "engine_id": own.get(found["pid"])} for found in engine_servers()]

    def spawn_engine(
        self,
        model_id: str,
        gpu_ids: list[int],
        port: int | None = None,
        *,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        extra_args: list[str] | None = None,
        engine_kind: EngineRuntime = EngineRuntime.LLM,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Begin to start an engine; it is ``STARTING`` until it serves, and ``FAILED`` with the reason if it does not.

        Args:
            model_id: What it serves.
            gpu_ids: GPUs it sees; with none it sees none.
            port: Its port; a free one if left out.
            tensor_parallel_size: Devices that each layer is spread over.
            pipeline_parallel_size: Stages.
            extra_args: Those of ``sagellm engine`` that describe an engine.
            engine_kind: What it makes.
            metadata: Kept; ``api_key`` in it is what its server asks for, made up if left out.

        Returns:
            Its id.

        Raises:
            ValueError: A value cannot be, or the port is taken.
            SageLLMError: ``NOT_INSTALLED`` for an interpreter that is not there.
        """
        spec = spec_of(
            model_id,
            tensor_parallel_size=tensor_parallel_size,
            pipeline_parallel_size=pipeline_parallel_size,
            extra_spawn_args=extra_args,
            use_gpu=None,
        )
        runtime = EngineRuntime(engine_kind)
        engine_id = f"engine-{uuid.uuid4().hex[:12]}"
        with self._lock:
            chosen = self._port(port)
            info = EngineProcessInfo(
                engine_id=engine_id,
                model_id=model_id,
                port=chosen,
                gpu_ids=list(gpu_ids),
                pid=0,
                command=[self.python_executable, "-m", "sagellm_control_plane.remote"],
                env_overrides={"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpu_ids))},
                runtime=runtime,
            )
            orders = {"spec": spec.model_dump(mode="json"), "host": self.host, "port": chosen}
            run = self._started(info, orders, str((metadata or {}).get("api_key") or secrets.token_urlsafe(32)))
            run.metadata = dict(metadata or {})
            self._runs[engine_id] = run
            self._trim()
        return engine_id

    def stop_engine(self, engine_id: str, *, timeout: float | None = None, drain: bool = False) -> bool:
        """Stop an engine, politely and soon not so. False for one that is unknown or over.

        Args:
            engine_id: Which.
            timeout: Seconds it has to end, and before that to drain; ``stop_timeout`` if left out.
            drain: Let it finish what it has.
        """
        with self._lock:
            run = self._runs.get(engine_id)
            if run is None or run.info.status in (*_OVER, EngineStatus.STOPPING):
                return False
            running, run.info.status = run.info.status is EngineStatus.RUNNING, EngineStatus.STOPPING
        limit = self.stop_timeout if timeout is None else timeout
        if drain and running:
            with contextlib.suppress(SageLLMError, asyncio.TimeoutError):
                _outside(lambda: self._drained(run, limit))
        if self._control_plane is not None and running:
            self._control_plane.unregister_engine(engine_id)
        run.process.terminate()
        try:
            run.process.wait(limit)
        except subprocess.TimeoutExpired:
            run.process.kill()
            run.process.wait()
        if run.watcher is not None:
            run.watcher.join()
        with self._lock:
            self._trim()
        return True

    def get_engine_status(self, engine_id: str) -> dict[str, Any]:
        """An engine's record.

        Raises:
            ValueError: It is unknown.
        """
        with self._lock:
            run = self._runs.get(engine_id)
            if run is None:
                raise BadValue(f"no engine {engine_id!r} was started here", "engine_id", ErrorCode.NOT_FOUND)
            ended = run.info.stopped_at or time.time()
            record = asdict(run.info)
            record.update(status=run.info.status.value, runtime=run.info.runtime.value)
            return {
                **record,
                "host": _reachable(self.host),
                "uptime_seconds": ended - run.info.created_at,
                "log_file": str(run.log_file),
                "metadata": {key: value for key, value in run.metadata.items() if key != "api_key"},
            }

    def list_engines(self) -> list[dict[str, Any]]:
        """The records of all, stopped ones until they are pruned."""
        with self._lock:
            return [self.get_engine_status(engine_id) for engine_id in self._runs]

    async def health_check(self, engine_id: str, timeout: float = 5.0) -> bool:
        """Whether an engine's server answers within ``timeout`` seconds that it is ready."""
        with self._lock:
            run = self._runs.get(engine_id)
        if run is None or run.info.status is not EngineStatus.RUNNING:
            return False
        engine = self._client(run)
        try:
            stats = await asyncio.wait_for(engine.stats(), timeout)
        except (SageLLMError, asyncio.TimeoutError):
            return False
        finally:
            await engine.stop()
        return stats.state is EngineState.READY

    async def health_check_all(self) -> dict[str, bool]:
        """Whether each that is not over answers, asked at once."""
        with self._lock:
            names = [name for name, run in self._runs.items() if run.info.status not in _OVER]
        found = await asyncio.gather(*(self.health_check(name) for name in names))
        return dict(zip(names, found, strict=True))

    def prune_stopped_engines(self) -> int:
        """Forget those that are over; how many they were."""
        with self._lock:
            over = [name for name, run in self._runs.items() if run.info.status in _OVER]
            for name in over:
                self._forget(name)
        return len(over)

    # --- within -------------------------------------------------------------------------------------------------------

    def _port(self, port: int | None) -> int:
        if port is not None and port in self.reserved_ports:
            raise BadValue(f"port {port} is another engine's here; leave it out to take a free one", "port")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, port or 0))
            except (OSError, OverflowError) as failure:
                raise BadValue(f"port {port} of {self.host} cannot be bound: {failure}", "port") from failure
            return int(probe.getsockname()[1])

    def _started(self, info: EngineProcessInfo, orders: dict[str, Any], api_key: str) -> _Run:
        log_file = self._logs / f"{info.engine_id}.log"
        reading, writing = os.pipe()
        try:
            with log_file.open("wb") as log:
                process = subprocess.Popen(
                    info.command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(writing,),
                    env={**os.environ, **info.env_overrides},
                )
        except OSError as failure:
            os.close(reading)
            raise SageLLMError(
                ErrorCode.NOT_INSTALLED, f"{info.command[0]} cannot be run: {failure}", "python_executable"
            ) from failure
        finally:
            os.close(writing)
        info.pid = process.pid
        run = _Run(info, process, log_file, api_key)
        told = {"api_key": api_key, "drain_s": 0.0, "keepalive_s": KEEPALIVE_S}
        text = json.dumps({**orders, **told, "parent_pid": os.getpid(), "report_fd": writing})
        assert process.stdin is not None
        # One that dies at once is told by its report, or the lack of one.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(text.encode())
        run.watcher = threading.Thread(target=self._watch, args=(run, reading), name=info.engine_id, daemon=True)
        run.watcher.start()
        return run

    def _watch(self, run: _Run, reading: int) -> None:
        """Wait for an engine's report, and then for its end."""
        with os.fdopen(reading, "rb") as pipe:
            line = pipe.readline()
        report = json.loads(line) if line.strip() else {}
        error = report.get("error")
        serves = bool(report.get("url"))
        if error is not None:
            run.info.last_error = str(error.get("message", error))
        with self._lock:
            serves = serves and run.info.status is EngineStatus.STARTING
            if serves:
                run.info.status = EngineStatus.RUNNING
        if serves and self._control_plane is not None:
            self._control_plane.register_engine(
                run.info.engine_id,
                run.info.model_id,
                _reachable(self.host),
                run.info.port,
                run.info.runtime.value,
                {**run.metadata, "api_key": run.api_key},
            )
        status = run.process.wait()
        with self._lock:
            asked = run.info.status is EngineStatus.STOPPING
            run.info.last_exit_code, run.info.stopped_at = status, time.time()
            run.info.status = EngineStatus.STOPPED if asked else EngineStatus.FAILED
            if not asked and run.info.last_error is None:
                said = " | ".join(run.log_file.read_text(errors="replace").splitlines()[-LAST_LINES:])
                run.info.last_error = f"exit status {status}{': ' + said if said else ''}"

    async def _drained(self, run: _Run, limit_s: float) -> None:
        engine = self._client(run)
        try:
            await asyncio.wait_for(engine.drain(), limit_s)
        finally:
            await engine.stop()

    def _client(self, run: _Run) -> RemoteEngine:
        return RemoteEngine(f"http://{_reachable(self.host)}:{run.info.port}", api_key=run.api_key)

    def _trim(self) -> None:
        over = [name for name, run in self._runs.items() if run.info.status in _OVER]
        for name in over[: max(0, len(over) - self.max_stopped_engines)]:
            self._forget(name)

    def _forget(self, engine_id: str) -> None:
        run = self._runs.pop(engine_id)
        run.log_file.unlink(missing_ok=True)


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "localhost", "") else host


def _outside(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine to its end on a loop of its own: the caller may be on one that must not be entered twice."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work())
        except (SageLLMError, asyncio.TimeoutError) as failure:
            failures.append(failure)

    thread = threading.Thread(target=run, name="drain")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
