"""Engine servers inside a test's own event loop, and servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn

from sagellm_control_plane.remote.app import EngineApp
from sagellm_control_plane.remote.client import RemoteEngine
from sagellm_control_plane.remote.server import bind, url_of
from sagellm_protocol.interfaces import Engine


class LocalServer:
    """An ASGI application on a free port of this machine."""

    def __init__(self, app: Any, port: int = 0) -> None:
        self._listener = bind("127.0.0.1", port)
        self.url = url_of(self._listener)
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]))

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._listener.close()


class ServedEngine(RemoteEngine):
    """A remote engine that brings its server with it."""

    def __init__(self, engine: Engine) -> None:
        self._served = engine
        self._server = LocalServer(EngineApp(engine))
        super().__init__(self._server.url)

    async def start(self) -> None:
        await self._served.start()
        await self._server.start()
        await super().start()

    async def stop(self) -> None:
        await super().stop()
        await self._served.stop()
        await self._server.stop()


@contextlib.asynccontextmanager
async def served(engine: Engine, port: int = 0, **options: Any) -> AsyncIterator[str]:
    """The address of a server of a started engine."""
    await engine.start()
    server = LocalServer(EngineApp(engine, **options), port)
    await server.start()
    try:
        yield server.url
    finally:
        await engine.stop()
        await server.stop()


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@contextlib.asynccontextmanager
async def raw_server(talk: Talk) -> AsyncIterator[str]:
    """The address of a server that says what ``talk`` says."""
    talks: set[asyncio.Task[Any]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def request_head(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Path and body of one HTTP request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    path = head.split(" ")[1]
    length = next((int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length:")), 0)
    return path, await reader.readexactly(length)
