"""One engine behind HTTP, as :mod:`sagellm_protocol.remote` specifies it.

Serves whatever ``sagellm.engines`` offers. Knows nothing of users' APIs: what calls it is a control plane.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Generator, Iterator

import uvicorn

from sagellm_control_plane.launchers.base import make_engine
from sagellm_protocol import EngineSpec, ErrorCode, SageLLMError
from sagellm_protocol.interfaces import Engine
from sagellm_protocol.remote import KEEPALIVE_S

from .app import MAX_BODY_BYTES, EngineApp
from .streams import SERVER_IDLE_S

log = logging.getLogger(__name__)
DEFAULT_PORT = 8900


async def serve_engine(
    spec: EngineSpec,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    api_key: str | None = None,
    *,
    drain_s: float = 30.0,
    keepalive_s: float = KEEPALIVE_S,
    max_body_bytes: int = MAX_BODY_BYTES,
    on_ready: Callable[[str], None] | None = None,
    log_level: str = "warning",
    parent_pid: int | None = None,
) -> None:
    """Start the engine that ``spec`` asks for and serve it until SIGTERM or SIGINT; a second signal stops at once.

    The port is taken before the engine loads, so that a port in use is told in a moment; health is red until it serves.

    Args:
        spec: The engine.
        host: Address to bind. Without an ``api_key`` whoever reaches it may use the engine; a warning says so.
        port: 0 takes any free one.
        api_key: What clients must present.
        drain_s: Longest that requests in flight may take after the signal.
        keepalive_s: Silence after which a stream sends a sign of life.
        max_body_bytes: Longest body taken.
        on_ready: Called with the server's URL once the engine serves.
        log_level: uvicorn's.
        parent_pid: Stop when this process is no longer our parent.

    Raises:
        SageLLMError: ``CONFLICT`` when the port is in use; the root cause when the engine does not start.
    """
    if api_key is None and host not in ("127.0.0.1", "localhost", "::1"):
        log.warning("listening on %s without a key: whoever reaches this machine may use the engine", host)
    listener = bind(host, port)
    try:
        engine = await asyncio.to_thread(make_engine, spec)
        app = EngineApp(engine, api_key=api_key, keepalive_s=keepalive_s, max_body_bytes=max_body_bytes)
        config = uvicorn.Config(
            app,
            log_level=log_level,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=SERVER_IDLE_S,
            timeout_graceful_shutdown=5,
        )
        await _run(_Server(config), app, engine, listener, on_ready, drain_s, parent_pid)
    finally:
        listener.close()


class _Server(uvicorn.Server):
    """uvicorn without its own handling of signals: ours drains the engine first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none."""
        yield


async def _run(
    server: _Server,
    app: EngineApp,
    engine: Engine,
    listener: socket.socket,
    on_ready: Callable[[str], None] | None,
    drain_s: float,
    parent_pid: int | None,
) -> None:
    stopping, hurry = asyncio.Event(), asyncio.Event()
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="engine server")
    asked = asyncio.create_task(stopping.wait(), name="stop signal")
    watch = asyncio.create_task(_orphaned(parent_pid, stopping), name="parent")
    starting = asyncio.create_task(engine.start(), name="engine start")
    try:
        with _signals(stopping, hurry):
            await asyncio.wait([starting, serving, asked], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                if on_ready is not None:
                    on_ready(url_of(listener))
                await asyncio.wait([serving, asked], return_when=asyncio.FIRST_COMPLETED)
                await _drained(engine, drain_s, hurry)
                # What was drained has its last line sent by tasks of its own.
                await app.quiet(1.0)
    finally:
        for task in (asked, watch, starting):
            task.cancel()
        await asyncio.gather(asked, watch, starting, return_exceptions=True)
        await engine.stop()
        server.should_exit = True
        await serving


async def _drained(engine: Engine, limit_s: float, hurry: asyncio.Event) -> None:
    """Return once the engine is drained, the limit has passed, or someone is in a hurry."""
    tasks = [asyncio.create_task(engine.drain(), name="drain"), asyncio.create_task(hurry.wait(), name="hurry")]
    await asyncio.wait(tasks, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _signals(stopping: asyncio.Event, hurry: asyncio.Event) -> Iterator[None]:
    """The first SIGTERM or SIGINT sets ``stopping``, the second ``hurry``."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            hurry.set()
        stopping.set()

    caught = (signal.SIGTERM, signal.SIGINT)
    for number in caught:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


async def _orphaned(parent_pid: int | None, stopping: asyncio.Event) -> None:
    """Stop when whoever started this process is gone."""
    while parent_pid is not None:
        if os.getppid() != parent_pid:
            log.warning("the process that started this engine server is gone; stopping")
            stopping.set()
            return
        await asyncio.sleep(1.0)


def bind(host: str, port: int) -> socket.socket:
    """Take a port, IPv4 or IPv6.

    Raises:
        SageLLMError: ``CONFLICT`` when it is in use; ``INVALID_REQUEST`` for an address that cannot be bound.
    """
    if not 0 <= port <= 65535:
        # The resolver would wrap it around in silence.
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"cannot listen on port {port}: it is not in 0 to 65535", "port")
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        if listener is not None:
            listener.close()
        taken = error.errno == errno.EADDRINUSE
        raise SageLLMError(
            ErrorCode.CONFLICT if taken else ErrorCode.INVALID_REQUEST,
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another",
            "port" if taken else "host",
        ) from error
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a listener can be reached from this machine."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
