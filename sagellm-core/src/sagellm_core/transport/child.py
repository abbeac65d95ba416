"""The core's own process: started by :mod:`.spawn` alone.

Where it is, and what to import meanwhile, is the first line of its standard input; what it shall run, the second. That
pipe is also its lifeline: when it closes, the parent is gone, and the process ends. Signals that a terminal or a
service manager sends to a whole group are the parent's to act on: it drains, then stops its core.
"""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

PARENT_GONE = 75
"""Exit code when the parent has gone; nobody is left to read it but a person looking."""
FAILED = 1
LOOK_S = 1.0
LINGER_S = 2.0


def main() -> int:
    """Serve one core until told to stop; the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_watch_parent, args=(os.getppid(),), name="parent", daemon=True).start()
    # What is made while loading stays: looking for garbage in it took a tenth of the start.
    gc.disable()
    place = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = place["path"]
    if place["prepare"] is not None:
        _named(place["prepare"])()
    from sagellm_protocol.logs import configure  # the path is the parent's from here on

    line = sys.stdin.buffer.readline()
    if not line:
        return PARENT_GONE
    task = json.loads(line)
    threading.Thread(
        target=_end_with_parent, args=(os.getppid(), Path(task["folder"])), name="lifeline", daemon=True
    ).start()
    configure(task["log_level"], "%(levelname)s %(name)s [%(request_id)s]: %(message)s")
    return _serve(task)


def _named(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def _watch_parent(parent: int) -> None:
    # Until there is a task the pipe is being read; and a forked sibling may hold its other end open.
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(PARENT_GONE)


def _end_with_parent(parent: int, folder: Path) -> None:
    # A forked sibling may hold the pipe's other end open, so the parent's id is looked at as well.
    while os.getppid() == parent:
        if select.select([sys.stdin], [], [], LOOK_S)[0] and not os.read(sys.stdin.fileno(), 4096):
            break
    shutil.rmtree(folder, ignore_errors=True)  # the socket's; who made it cannot remove it any more
    os._exit(PARENT_GONE)


def _serve(task: dict[str, Any]) -> int:
    # Imported here, once signals are set and the path is the parent's.
    import zmq

    from sagellm_protocol.engine import EngineSpec

    from .failure import failure_of
    from .messages import Failed
    from .serve import serve
    from .zeromq import RouterChannel

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    channel = RouterChannel(context, task["address"])
    try:
        core = _named(task["factory"])(EngineSpec.model_validate_json(task["spec"]), Path(task["model"]))
        gc.freeze()
        gc.enable()
        try:
            serve(core, channel)
        finally:
            core.stop()
        code = 0
    except Exception as error:  # noqa: BLE001 - reported to the front, and the process ends
        failure: Failed = failure_of(error)
        if failure.code == "internal":
            traceback.print_exc()
        channel.tell_all(failure, LINGER_S)
        code = FAILED
    channel.close(LINGER_S)
    context.term()
    return code
