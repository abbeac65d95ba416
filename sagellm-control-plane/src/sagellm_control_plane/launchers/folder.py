"""The folder of an engine that outlives whoever started it: a lock, its whereabouts, its log.

The lock is what counts: the engine's process holds it from its first moment to its last, and the kernel lets go of it
however that process ends. Who gets it knows that nothing runs; who does not, that the engine does, whatever other files
say. So no engine is started twice, and a process id that was given to another process misleads nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, Field

LOG_BYTES = 16 * 2**20
"""A log of more is begun anew, and the one before kept beside it."""
TAIL_BYTES = 256 * 1024
"""Most that is read of a log's end."""
ROTATE_EVERY_S = 5.0


class Whereabouts(BaseModel):
    """How an engine is reached."""

    url: str
    api_key: str = Field(repr=False)


class EngineFolder:
    """One engine's folder.

    Args:
        path: The folder; it is made when the lock is taken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path / "log"
        self._lock = path / "lock"
        self._whereabouts = path / "whereabouts.json"

    @classmethod
    def of(cls, engine_id: str, inside: Path) -> EngineFolder:
        """The folder of an engine among those of others."""
        name = quote(engine_id, safe="")
        if len(name) > 100 or name in (".", ".."):
            name = hashlib.sha256(engine_id.encode()).hexdigest()
        return cls(inside / name)

    # --- for whoever starts it ----------------------------------------------------------------------------------------

    def take(self) -> int | None:
        """A descriptor that holds the lock, for the engine's process to inherit; ``None`` while an engine runs.

        What an earlier engine said of itself is removed.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            if not _lock(descriptor):
                os.close(descriptor)
                return None
            os.ftruncate(descriptor, 0)
            self._whereabouts.unlink(missing_ok=True)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def running(self) -> bool:
        """Whether a process holds the lock."""
        try:
            descriptor = os.open(self._lock, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not _lock(descriptor)
        finally:
            os.close(descriptor)

    def whereabouts(self) -> Whereabouts | None:
        """How to reach it; ``None`` before it serves."""
        try:
            return Whereabouts.model_validate_json(self._whereabouts.read_bytes())
        except FileNotFoundError:
            return None

    def pid(self) -> int | None:
        """Its process, once that has said so."""
        try:
            return int(self._lock.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal, if it runs."""
        pid = self.pid()
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if not hasattr(os, "pidfd_open"):
                if self.running():
                    os.kill(pid, number)
                return
            # Opened before the lock is looked at: it names the process that holds it, or one that has ended.
            process = os.pidfd_open(pid)
            try:
                if self.running():
                    signal.pidfd_send_signal(process, number)
            finally:
                os.close(process)

    def tail(self, lines: int) -> list[str]:
        """The last lines of its log."""
        text = b""
        for path in (self.log, self.log.with_suffix(".1")):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL_BYTES))
                text = file.read() + text
            if text.count(b"\n") > lines:
                break
        return text.decode(errors="replace").splitlines()[-lines:] if lines > 0 else []

    # --- for the engine's process -------------------------------------------------------------------------------------

    def occupy(self, lock: int) -> None:
        """Say which process holds the lock that was inherited, and keep the log short."""
        # Processes that this one starts must not hold it when this one is gone.
        os.set_inheritable(lock, False)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        threading.Thread(target=self._rotate_for_ever, name="log", daemon=True).start()

    def tell(self, whereabouts: Whereabouts) -> None:
        """Say where it is reached: all of it or nothing, at once."""
        draft = self._whereabouts.with_suffix(".draft")
        draft.touch(0o600)
        draft.write_text(whereabouts.model_dump_json())
        draft.replace(self._whereabouts)

    def rotate(self, most: int = LOG_BYTES) -> None:
        """Begin a log of more bytes anew. Its writers append through descriptors of their own, so it stays in place."""
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > most:
                shutil.copyfile(self.log, self.log.with_suffix(".1"))
                os.truncate(self.log, 0)

    def _rotate_for_ever(self) -> None:
        while True:
            time.sleep(ROTATE_EVERY_S)
            # On a disk that is full the log grows no more anyway.
            with contextlib.suppress(OSError):
                self.rotate()


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
