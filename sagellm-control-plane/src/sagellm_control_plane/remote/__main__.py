"""An engine server as a process of its own: what the ``subprocess`` launcher starts.

Reads one JSON object from standard input, so that keys stay out of the process list; reports through a descriptor it is
given, so that whatever an engine prints cannot be taken for a report. One that is to outlive who started it also keeps
a folder up to date, by which it is found again. People use ``sagellm engine``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys

from sagellm_control_plane.launchers.folder import EngineFolder, Whereabouts
from sagellm_protocol import ErrorCode, SageLLMError
from sagellm_protocol.logs import configure

from .loop import run
from .orders import Orders, Report
from .server import serve_engine


def main() -> int:
    """Serve until told to stop."""
    configure(logging.WARNING, "%(levelname)s %(name)s [%(request_id)s]: %(message)s")
    orders = Orders.model_validate_json(sys.stdin.buffer.read())
    folder = EngineFolder(orders.folder) if orders.folder is not None and orders.lock_fd is not None else None
    if folder is not None and orders.lock_fd is not None:
        folder.occupy(orders.lock_fd)
    told: list[Report] = []

    def report(what: Report) -> None:
        if not told:
            told.append(what)
            if folder is not None and what.url is not None:
                folder.tell(Whereabouts(url=what.url, api_key=orders.api_key or ""))
            # Whoever started it may be gone by now, and another be looking for it.
            with contextlib.suppress(BrokenPipeError), os.fdopen(orders.report_fd, "wb") as pipe:
                pipe.write(what.model_dump_json().encode() + b"\n")

    try:
        run(
            serve_engine(
                orders.spec,
                orders.host,
                orders.port,
                orders.api_key,
                drain_s=orders.drain_s,
                keepalive_s=orders.keepalive_s,
                on_ready=lambda url: report(Report(url=url)),
                parent_pid=orders.parent_pid,
            )
        )
    except SageLLMError as error:
        logging.getLogger(__name__).error("%s", error.message)
        report(Report(error=error.info()))
        return 1
    except Exception as error:
        logging.getLogger(__name__).exception("the engine server failed")
        report(Report(error=SageLLMError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}").info()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
