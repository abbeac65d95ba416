"""What an engine server's process is told when it is started, and what it reports; both ends."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from sagellm_protocol import EngineSpec, ErrorInfo


class Orders(BaseModel):
    """What to serve."""

    model_config = ConfigDict(extra="forbid")

    spec: EngineSpec
    host: str
    port: int
    api_key: str | None = Field(repr=False)
    drain_s: float
    keepalive_s: float
    parent_pid: int | None = None
    """Whom it is not to outlive."""
    report_fd: int
    lock_fd: int | None = None
    folder: Path | None = None
    """Where one that outlives is found again, and the lock there, held."""


class Report(BaseModel):
    """How the start went: one line; exactly one of the fields is set."""

    url: str | None = None
    error: ErrorInfo | None = None


async def read_report(descriptor: int) -> Report | None:
    """What a server reports; ``None`` when it ends without a word. Closes the pipe."""
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
