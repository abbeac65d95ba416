"""A core in a child process: started, watched, and told apart from a core that was asked to end.

The child's death is noticed by waiting on it, not by silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from sagellm_protocol.engine import EngineSpec
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .failure import describe_exit
from .messages import CoreMessage, Failed, FrontMessage, Hello, Ready, Stop
from .spawn import CoreProcess
from .zeromq import Dealer

logger = logging.getLogger("sagellm_core.child")

KEPT_LINES = 500
SHOWN_LINES = 5
GRACE_S = 10.0
"""How long a core may take to end when told to: a step may be under way."""
_LONGEST_SOCKET_PATH = 100  # the system's limit is 104 to 108 bytes


class ProcessClient:
    """Runs a core in a child process.

    Args:
        spec: Of the engine.
        path: Of the model.
        factory: ``module:function`` that makes the core, in the child.
        child: One that waits for its task; by default a new one.
    """

    def __init__(self, spec: EngineSpec, path: Path, factory: str, child: CoreProcess | None = None) -> None:
        self._spec = spec
        self._path = path
        self._factory = factory
        self._child = child
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._dealer: Dealer | None = None
        self._exited: asyncio.Event | None = None
        self._ready: asyncio.Future[Ready] | None = None
        self._deliver: Callable[[CoreMessage], None] | None = None
        self._lost: Callable[[str], None] | None = None
        self._failure: Failed | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, once it is started."""
        return self._process.pid if self._process is not None else None

    async def start(self, deliver: Callable[[CoreMessage], None], lost: Callable[[str], None]) -> Ready:
        """Start the child and return once its core is ready."""
        loop = asyncio.get_running_loop()
        self._deliver, self._lost = deliver, lost
        self._ready = loop.create_future()
        self._exited = asyncio.Event()
        self._folder = _socket_folder()
        address = f"ipc://{self._folder / 'core'}"
        self._dealer = Dealer(address, self._take)
        try:
            self._process = self._spawn(address)
            threading.Thread(target=self._watch, args=(loop, self._process), daemon=True).start()
            self._dealer.send(Hello())
            return await self._ready
        except BaseException:
            await self.stop()
            raise

    def send(self, message: FrontMessage) -> None:
        """Send to the core."""
        if self._dealer is not None:
            self._dealer.send(message)

    async def stop(self) -> None:
        """Ask the child to end, kill it when it does not, and clean up."""
        self._lost = None
        if self._process is not None and self._exited is not None:
            await self._end(self._process, self._exited)
            self._process = None
        if self._dealer is not None:
            self._dealer.close()
            self._dealer = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    async def _end(self, process: subprocess.Popen[bytes], exited: asyncio.Event) -> None:
        if self._ready is not None and self._ready.done():
            self.send(Stop())
            try:
                await asyncio.wait_for(exited.wait(), GRACE_S)
            except asyncio.TimeoutError:
                logger.warning("the engine core did not end within %g s; killing it", GRACE_S)
            else:
                return
        process.kill()  # it is loading, and holds nothing of anyone's, or it hangs
        await exited.wait()

    def logs(self, lines: int) -> Sequence[str]:
        """The last lines the child wrote."""
        return list(self._lines)[-lines:] if lines > 0 else ()

    def _spawn(self, address: str) -> subprocess.Popen[bytes]:
        child = self._child or CoreProcess()
        child.give(
            {
                "spec": self._spec.model_dump_json(),
                "model": str(self._path),
                "factory": self._factory,
                "address": address,
                "folder": str(self._folder),
                "log_level": logger.getEffectiveLevel(),
            }
        )
        return child.process

    def _watch(self, loop: asyncio.AbstractEventLoop, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stdin is not None
        reader = threading.Thread(target=self._keep_lines, args=(process.stdout,), daemon=True)
        reader.start()
        returncode = process.wait()
        reader.join(1.0)  # bounded: a grandchild may hold the pipe open
        with contextlib.suppress(BrokenPipeError):  # a task it never read is still on its way
            process.stdin.close()
        try:
            loop.call_soon_threadsafe(self._gone, returncode)
        except RuntimeError:
            logger.debug("the event loop ended before its engine core did")

    def _keep_lines(self, output: IO[bytes]) -> None:
        with output:
            for raw in output:
                line = raw.decode(errors="replace").rstrip()
                self._lines.append(line)
                logger.info("%s", line)

    def _gone(self, returncode: int) -> None:
        assert self._ready is not None
        assert self._exited is not None
        if self._dealer is not None:
            self._dealer.drain()  # what it sent before it ended
        if self._failure is not None:
            failure = self._failure
        else:
            failure = Failed(ErrorCode.ENGINE_FAILED.value, describe_exit(returncode, list(self._lines)[-SHOWN_LINES:]))
        self._exited.set()
        if not self._ready.done():
            self._ready.set_exception(SageLLMError(ErrorCode(failure.code), failure.message, failure.param))
        elif self._lost is not None:
            self._lost(failure.message)

    def _take(self, message: CoreMessage) -> None:
        assert self._ready is not None
        assert self._deliver is not None
        if isinstance(message, Failed):
            self._failure = message  # told when the process has ended, which it is about to
        elif isinstance(message, Ready):
            if not self._ready.done():
                self._ready.set_result(message)
        else:
            self._deliver(message)


def _socket_folder() -> Path:
    """A folder of our own (mode 0700), whose path is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="sagellm-"))
    if len(str(folder)) > _LONGEST_SOCKET_PATH - len("/core"):
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="sagellm-", dir="/tmp"))
    return folder
