"""A served stack in a process of its own, as a user starts it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

START_LIMIT_S = 110


@dataclass
class Server:
    """A running ``sagellm serve`` or ``sagellm engine``."""

    process: subprocess.Popen[str]
    url: str
    model: str

    @property
    def root(self) -> str:
        """The address without the API's prefix."""
        return self.url.removesuffix("/v1")


def read_line(process: subprocess.Popen[str], limit_s: float = START_LIMIT_S) -> str:
    """The next line of a process's output; fails when it ends or says nothing."""
    assert process.stdout is not None
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        ready, _, _ = select.select([process.stdout], [], [], 0.5)
        if ready:
            line = process.stdout.readline()
            if line:
                return line
        if process.poll() is not None:
            break
    process.kill()
    raise AssertionError(
        f"no line came; exit code {process.wait()}; standard error: {process.stderr and process.stderr.read()}"
    )


def start(*arguments: str, **environment: str) -> Server:
    """Start a server command with ``--json`` and wait until it says where it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sagellm", *arguments, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    said = json.loads(read_line(process))
    return Server(process, said["url"], said["model"])


def stop(server: Server) -> int:
    """Ask a server to stop, and return its exit code."""
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
    try:
        server.process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.communicate()
        raise
    return server.process.returncode


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers that are stopped at the end of the test."""
    started: list[Server] = []

    def launch(*arguments: str, **environment: str) -> Server:
        started.append(start(*arguments, **environment))
        return started[-1]

    yield launch
    for server in started:
        stop(server)


@pytest.fixture(scope="session")
def mock_stack() -> Iterator[Server]:
    """The whole stack over the mock engine."""
    server = start("serve", "--engine", "mock")
    yield server
    assert stop(server) == 0


@pytest.fixture(scope="session")
def real_stack() -> Iterator[Server]:
    """The whole stack over the embedded model."""
    server = start("serve", "smollm2-135m", "--dtype", "float32", "--max-num-seqs", "16", "--max-model-len", "2048")
    yield server
    assert stop(server) == 0


def sagellm(
    *arguments: str, stdin: str | None = None, timeout: float = 110, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "sagellm", *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


@pytest.fixture(name="sagellm")
def sagellm_fixture() -> Callable[..., subprocess.CompletedProcess[str]]:
    """The ``sagellm`` command."""
    return sagellm
