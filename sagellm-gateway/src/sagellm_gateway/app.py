"""Puts a gateway together: routes, layers, error answers, and the control plane if none is passed in.

Knows nothing of sockets or signals.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from sagellm_protocol import ControlPlane, SageLLMError

from .description import description
from .errors import error_response, plain_error
from .gateway import Gateway
from .lifecycle import Lifecycle
from .metrics import Meters
from .middleware.auth import BearerAuth
from .middleware.body_limit import BodyLimit
from .middleware.envelope import Envelope
from .middleware.gate import Gate
from .middleware.prefix import ApiPrefix
from .middleware.shortcut import Shortcut
from .own_plane import make_plane, started
from .relay import Relay
from .routes import ROUTERS
from .settings import GatewaySettings, load_settings


def create_app(control_plane: ControlPlane | None = None, settings: GatewaySettings | None = None) -> FastAPI:
    """Make the gateway's ASGI application.

    Args:
        control_plane: Where requests go. Whoever passes one starts and stops it; with none, the one that the settings
            name is made here, and starts and stops with the application.
        settings: Read from the environment when absent.

    Raises:
        SageLLMError: A setting is wrong, or no control plane is installed.
    """
    settings = settings or load_settings()
    plane = make_plane(settings) if control_plane is None else control_plane
    meters, lifecycle = Meters(), Lifecycle()

    @asynccontextmanager
    async def owned(_: FastAPI) -> AsyncIterator[None]:
        async with started(plane, settings):
            yield

    app = FastAPI(
        title="isagellm gateway",
        version=version("isagellm-gateway"),
        lifespan=owned if control_plane is None else None,
        # The usual pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Newer frameworks make spans of their own, which would stand beside ours; older ones know no such setting.
        telemetry={"tracing": False, "operation_spans": False},
        middleware=list(_layers(settings, lifecycle, meters)),
        exception_handlers={SageLLMError: _refused, HTTPException: _http_error},
    )
    app.state.gateway = Gateway(plane, settings, lifecycle, meters, Relay(plane, meters))
    for router in ROUTERS:
        app.include_router(router)
    app.openapi = lambda: description(app)  # type: ignore[method-assign]
    return app


def _layers(settings: GatewaySettings, lifecycle: Lifecycle, meters: Meters) -> list[Middleware]:
    layers = []
    if settings.cors_origins:
        layers.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-request-id"],
                expose_headers=["x-request-id", "retry-after"],
            )
        )
    layers += [Middleware(Envelope, meters=meters), Middleware(ApiPrefix)]
    if settings.authenticated:
        keys = [key.get_secret_value() for key in settings.api_keys]
        layers.append(Middleware(BearerAuth, keys=keys, open_paths=settings.open_paths))
    return [
        *layers,
        Middleware(Gate, lifecycle=lifecycle),
        Middleware(BodyLimit, limit=settings.max_body_bytes),
        Middleware(Shortcut, routers=ROUTERS, refused=_refused, http_error=_http_error),
    ]


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, SageLLMError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {
        404: (f"no route {request.method} {request.url.path}; GET /openapi.json lists them", "unknown_url"),
        405: (f"{request.url.path} does not take {request.method}", "method_not_allowed"),
        408: (str(error.detail), "request_timeout"),
        415: (str(error.detail), "unsupported_media_type"),
    }
    message, code = words.get(error.status_code, (str(error.detail), "http_error"))
    return plain_error(error.status_code, message, code, error.headers)
