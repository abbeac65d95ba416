"""A gateway that really serves: uvicorn in a thread, its plane in the same event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from planes import SoloPlane
from sagellm_gateway import GatewayServer, GatewaySettings, create_app
from sagellm_gateway.server import bind
from sagellm_protocol import EngineSpec
from sagellm_protocol.plugins import CONTROL_PLANES, load
from sagellm_protocol.testing import MockEngine

T = TypeVar("T")
WAIT_S = 20


class Live:
    """A serving gateway."""

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop, plane: Any, server: GatewayServer) -> None:
        self.url = url
        self.loop = loop
        self.plane = plane
        self.server = server
        self.thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait, bounded, until something in the gateway's loop is so."""

        async def watch() -> None:
            while not condition():  # noqa: ASYNC110 - conditions of others have no event to wait for
                await asyncio.sleep(0.005)

        self.call(asyncio.wait_for(watch(), WAIT_S))

    def stop(self) -> None:
        self.server.drain()
        self.server.drain()
        assert self.thread is not None
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive(), "the gateway did not stop"

    def raw(self, request: bytes, receive_buffer: int | None = None) -> socket.socket:
        """A connection of our own making, on which a request has been sent."""
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(WAIT_S)
        connection.connect(("127.0.0.1", self.port))
        connection.sendall(request)
        return connection


@contextlib.contextmanager
def live(make_plane: Callable[[], Any], engine: EngineSpec | None = None, **settings: Any) -> Iterator[Live]:
    """Serve a plane made in the gateway's own loop until the block ends.

    Args:
        make_plane: Makes the plane.
        engine: An engine for the plane to start.
        settings: Those of the gateway.
    """
    ready: Future[Live] = Future()
    configured = GatewaySettings(**{"port": 0, "drain_s": 5.0, "log_level": "warning", **settings})

    async def main() -> None:
        plane = make_plane()
        await plane.start()
        if engine is not None:
            await plane.start_engine(engine)
        listener = bind(configured.host, configured.port)
        try:
            app = create_app(plane, configured)
            loop = asyncio.get_running_loop()
            server = GatewayServer(app, configured, lambda url: ready.set_result(Live(url, loop, plane, server)))
            await server.serve(sockets=[listener])
        finally:
            listener.close()
            await plane.stop()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=run, name="gateway", daemon=True)
    thread.start()
    gateway = ready.result(WAIT_S)
    gateway.thread = thread
    try:
        yield gateway
    finally:
        gateway.stop()


def mock_engine(**options: Any) -> MockEngine:
    """A mock that answers to ``mock``; ``options`` are its own."""
    limits = {name: options.pop(name) for name in ("max_num_seqs", "max_model_len") if name in options}
    return MockEngine(EngineSpec(engine="mock", model="mock", options=options, **limits), engine_id="e0")


def default_plane() -> Any:
    """The installed control plane, found as the gateway finds it."""
    return load(CONTROL_PLANES, "default")()


def mock_plane(**options: Any) -> Callable[[], SoloPlane]:
    return lambda: SoloPlane(mock_engine(**options))
