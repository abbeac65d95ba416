"""Serves a gateway over HTTP: binds, says when it is ready, drains on SIGTERM, and exits.

Knows nothing of what is served. Run as ``python -m sagellm_gateway``, or as ``uvicorn sagellm_gateway.server:app``.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from sagellm_protocol import ControlPlane, ErrorCode, SageLLMError

from .app import create_app
from .middleware.local_hosts import LocalHosts
from .own_plane import make_plane, started
from .protocol import bounded_protocol
from .settings import GatewaySettings, load_settings

CLOSE_S = 5
"""Seconds that connections have to close once nothing is in flight, or once what was has been told that it ends."""


class GatewayServer(uvicorn.Server):
    """A server that drains before it stops listening.

    The first SIGTERM or SIGINT turns ``/ready`` red and new requests away, while those in flight have ``drain_s``
    seconds; a second one ends them at once.

    Args:
        app: The gateway, made by :func:`create_app`.
        settings: Where to listen, and for how long to drain.
        on_ready: Called with the gateway's address once it answers.
    """

    def __init__(self, app: FastAPI, settings: GatewaySettings, on_ready: Callable[[str], None] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                _guarded(app, settings),
                host=settings.host,
                port=settings.port,
                http=bounded_protocol(settings.max_header_bytes, settings.read_timeout_s),
                ws="none",
                lifespan="on",
                log_config=None,
                log_level=settings.log_level,
                # A line that nobody reads is not worth making.
                access_log=logging.getLogger("uvicorn.access").hasHandlers(),
                server_header=False,
                timeout_keep_alive=max(1, round(settings.connection_idle_s)),
                timeout_graceful_shutdown=CLOSE_S,
            )
        )
        self._lifecycle = app.state.gateway.lifecycle
        self._drain_s = settings.drain_s
        self._on_ready = on_ready
        self._deadline = float("inf")

    def drain(self) -> None:
        """Begin to stop. Called again, stop now. Safe in a signal handler."""
        if self._lifecycle.draining:
            self._deadline = 0.0
            return
        self._deadline = time.monotonic() + self._drain_s
        self._lifecycle.drain()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal. It is not raised again once served: a drained server exits with status 0."""
        self.drain()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop. Cancelled, it ends what is in flight and the application before it goes."""
        try:
            await super().serve(sockets)
        except asyncio.CancelledError:
            self._lifecycle.drain()
            self._lifecycle.expire()
            # uvicorn would leave the application's lifespan to be cancelled with the loop, and log that as its failure.
            await (self.shutdown(sockets) if self.started else self.lifespan.shutdown())
            raise

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so.

        Raises:
            SageLLMError: ``CONFLICT`` when another program came first to listen at the address; ``INTERNAL`` when the
                application did not start, with the reason in the log.
        """
        # uvicorn tells of a failed start by leaving the program, or in older versions by not having started.
        with suppress(SystemExit):
            try:
                await super().startup(sockets)
            except OSError as error:
                raise _cannot_bind(self.config.host, self.config.port, error) from None
        if not self.started:
            raise SageLLMError(ErrorCode.INTERNAL, "the gateway's application did not start; the log says why")
        if self._on_ready is not None and sockets:
            self._on_ready(address(sockets[0]))

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop listening."""
        if self._lifecycle.draining:
            late = time.monotonic() >= self._deadline
            if late:
                self._lifecycle.expire()
            if late or self._lifecycle.in_flight == 0:
                self.should_exit = True
        return await super().on_tick(counter)


def _guarded(app: FastAPI, settings: GatewaySettings) -> ASGIApp:
    if not settings.local_only:
        return app
    return LocalHosts(app, [settings.host, *settings.allowed_hosts], settings.cors_origins)


async def serve(
    control_plane: ControlPlane | None = None,
    settings: GatewaySettings | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until a signal, then drain and return.

    Args:
        control_plane: Where requests go; started and stopped by the caller. With none, the one that the settings name
            is made, started and stopped here.
        settings: Read from the environment when absent.
        on_ready: Called with the gateway's address once it answers.

    Raises:
        SageLLMError: The address cannot be had, or would be open to strangers; or the control plane does not start.
    """
    settings = settings or load_settings()
    settings.refuse_exposure()
    async with AsyncExitStack() as held:
        listener = held.enter_context(bind(settings.host, settings.port))
        plane = control_plane
        if plane is None:
            plane = make_plane(settings)
            await held.enter_async_context(started(plane, settings))
        await GatewayServer(create_app(plane, settings), settings, on_ready).serve(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; connections are refused until a server listens on it.

    Raises:
        SageLLMError: ``CONFLICT`` for a port in use, ``PERMISSION_DENIED``, or ``INVALID_REQUEST`` for an address that
            this machine does not have.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SageLLMError(
            ErrorCode.INVALID_REQUEST, f"host {host!r} cannot be resolved ({error.strerror}); give an address", "host"
        ) from None
    # A name of both kinds, as localhost, is this machine's IPv4 address to most clients.
    family, kind, number, _, place = min(found, key=lambda one: one[0] != socket.AF_INET)
    listener = socket.socket(family, kind, number)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError as error:
        listener.close()
        raise _cannot_bind(host, port, error) from None
    return listener


def address(listener: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def _cannot_bind(host: str, port: int, error: OSError) -> SageLLMError:
    if error.errno == errno.EADDRINUSE:
        return SageLLMError(
            ErrorCode.CONFLICT,
            f"port {port} on {host} is in use by another program; stop that, or choose another with --port"
            " (0 takes any that is free)",
            "port",
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return SageLLMError(
            ErrorCode.PERMISSION_DENIED, f"port {port} may not be opened by this user; choose one above 1023", "port"
        )
    return SageLLMError(
        ErrorCode.INVALID_REQUEST,
        f"cannot listen on {host}:{port} ({error.strerror}); give an address of this machine",
        "host",
    )


def __getattr__(name: str) -> Any:
    # ``uvicorn sagellm_gateway.server:app``: made when asked for, so that importing this module makes nothing.
    if name == "app":
        return create_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
