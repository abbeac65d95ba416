"""Takes ``/api`` off the front of paths: clients of SAGE's gateway put it there.

Knows nothing of routes.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/api"


class ApiPrefix:
    """Serves ``/api/…`` as ``/…``.

    Args:
        app: What is inside.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["path"].startswith(PREFIX + "/"):
            # In place: the layers outside read from it which route was met.
            scope["path"] = scope["path"].removeprefix(PREFIX)
            if isinstance(raw := scope.get("raw_path"), bytes):
                scope["raw_path"] = raw.removeprefix(PREFIX.encode())
        await self._app(scope, receive, send)
