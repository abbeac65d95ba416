"""Serves routes that read their own bodies without the framework's way to them, which costs more than they do.

That way finds a route among all, solves dependencies and keeps exit stacks; these routes have one path and one
argument, the request. They stay routes of the framework, which describes them. Knows nothing of any one route.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from inspect import signature

from fastapi.routing import APIRoute, APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sagellm_protocol import SageLLMError

Refuse = Callable[[Request, Exception], Awaitable[Response]]


class Shortcut:
    """Goes straight to the routes that allow it; leaves all else to the framework.

    Args:
        app: The framework.
        routers: Whose routes to serve.
        refused: Words what the contract refuses.
        http_error: Words what HTTP refuses.
    """

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter], refused: Refuse, http_error: Refuse) -> None:
        self._app = app
        self._refused = refused
        self._http_error = http_error
        self._routes = {
            (method, route.path): route
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute) and _is_plain(route)
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive, send)
        try:
            response = await route.endpoint(request)
            # A stream raises only before its first byte.
            await response(scope, receive, send)
        except SageLLMError as error:
            await (await self._refused(request, error))(scope, receive, send)
        except HTTPException as error:
            await (await self._http_error(request, error))(scope, receive, send)


def _is_plain(route: APIRoute) -> bool:
    return (
        "{" not in route.path and not route.dependencies and list(signature(route.endpoint).parameters) == ["request"]
    )
