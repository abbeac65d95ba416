"""An engine server as a process of its own: what the ``subprocess`` launcher starts.

Reads one JSON object from standard input, so that keys stay out of the process list; reports through a descriptor it is
given, so that whatever an engine prints cannot be taken for a report. People use ``sagellm engine``.
"""

from __future__ import annotations

import logging
import os
import sys

from pydantic import BaseModel, ConfigDict

from sagellm_protocol import EngineSpec, ErrorCode, ErrorInfo, SageLLMError
from sagellm_protocol.logs import configure

from .loop import run
from .server import serve_engine


class Orders(BaseModel):
    """What to serve."""

    model_config = ConfigDict(extra="forbid")

    spec: EngineSpec
    host: str
    port: int
    api_key: str | None
    drain_s: float
    keepalive_s: float
    parent_pid: int
    report_fd: int


class Report(BaseModel):
    """How the start went: one line; exactly one of the fields is set."""

    url: str | None = None
    error: ErrorInfo | None = None


def main() -> int:
    """Serve until told to stop."""
    configure(logging.WARNING, "%(levelname)s %(name)s [%(request_id)s]: %(message)s")
    orders = Orders.model_validate_json(sys.stdin.buffer.read())
    told: list[Report] = []

    def report(what: Report) -> None:
        if not told:
            told.append(what)
            with os.fdopen(orders.report_fd, "wb") as pipe:
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
