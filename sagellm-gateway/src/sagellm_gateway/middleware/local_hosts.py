"""Keeps web pages out of a gateway that wants no key because only this machine reaches it.

A page may point a name of its own at 127.0.0.1 (DNS rebinding) and then call as its own origin; the name it used stands
in the ``Host`` header. Knows nothing of keys.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from sagellm_gateway.errors import error_response
from sagellm_protocol import ErrorCode, SageLLMError

LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
ANY = "*"


class LocalHosts:
    """Serves requests whose ``Host`` is this machine, or has none.

    Args:
        app: What is inside.
        allowed: Further names; ``*`` is any.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        self._app = app
        self._allowed = LOCAL | {name.lower() for name in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        name = _host(scope) if scope["type"] == "http" and ANY not in self._allowed else None
        if name is not None and name not in self._allowed:
            await error_response(_refusal(name))(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _host(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"host":
            host = str(value, "latin-1").lower()
            return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
    return None


def _refusal(name: str) -> SageLLMError:
    return SageLLMError(
        ErrorCode.PERMISSION_DENIED,
        f"this gateway has no API key and serves this machine alone, not {name[:100]!r}: name it in allowed_hosts"
        " (SAGELLM_GATEWAY_ALLOWED_HOSTS), or set api_keys",
    )
