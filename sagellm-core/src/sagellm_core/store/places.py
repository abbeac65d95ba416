"""Where models are kept on this machine, and the lock that keeps two fetches of one model apart.

Knows nothing of what the files are.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sagellm_protocol.errors import ErrorCode, SageLLMError

HOME_VARIABLE = "SAGELLM_HOME"
_LOOK_EVERY_SECONDS = 0.1


def home() -> Path:
    """The folder everything is kept under: ``SAGELLM_HOME``, or the platform's place for caches.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` when this user has no home folder and none is named.
    """
    named = os.environ.get(HOME_VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    try:
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "sagellm"
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "sagellm" / "Cache"
        base = os.environ.get("XDG_CACHE_HOME")
        # The specification has relative values ignored.
        return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "sagellm"
    except RuntimeError as error:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"there is no place to keep models ({error}); set {HOME_VARIABLE} to a folder"
        ) from error


def model_folder(name: str, root: Path | None = None) -> Path:
    """Where the model called ``name`` is kept."""
    return (root or home()) / "models" / name


@contextlib.contextmanager
def locked(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold ``folder`` against other processes and threads.

    The operating system holds the lock, not the file's existence: a process that dies lets go of it.

    Args:
        folder: Made if it is missing.
        waiting: Called again and again while somebody else holds it; what it raises ends the wait.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` when the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+b")
    except OSError as error:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST,
            f"cannot write to {folder} ({error.strerror}); set {HOME_VARIABLE} to a folder that can be written to",
        ) from error
    with file:
        while not _try_lock(file.fileno()):
            waiting()
            time.sleep(_LOOK_EVERY_SECONDS)
        yield


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
