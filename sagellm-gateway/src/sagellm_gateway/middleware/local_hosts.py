"""Keeps web pages out of a gateway that wants no key because only this machine reaches it.

A page may point a name of its own at 127.0.0.1 (DNS rebinding) and then call as its own origin; the name it used stands
in the ``Host`` header. Or it may post to 127.0.0.1 itself: it does not see the answer, but has the machine at work all
the same; browsers then say whose page it is in the ``Origin`` header. Knows nothing of keys.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from sagellm_gateway.errors import error_response
from sagellm_protocol import ErrorCode, SageLLMError

LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
ANY = "*"


class LocalHosts:
    """Serves requests whose ``Host``, and ``Origin`` if there is one, are this machine.

    Args:
        app: What is inside.
        allowed: Further names; ``*`` is any.
        origins: Further origins whose pages may call; ``*`` is any.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str], origins: Iterable[str] = ()) -> None:
        self._app = app
        self._allowed = LOCAL | {name.lower() for name in allowed}
        self._origins = frozenset(origin.lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> SageLLMError | None:
        host, origin = _header(scope, b"host"), _header(scope, b"origin")
        if host is not None and not self._is_here(_name(host)):
            return _denied(
                f"not {_name(host)[:100]!r}: name it in allowed_hosts (SAGELLM_GATEWAY_ALLOWED_HOSTS), or set api_keys"
            )
        if origin is not None and not self._may_call(origin):
            return _denied(
                f"not pages of {origin[:100]!r}: name it in cors_origins (SAGELLM_GATEWAY_CORS_ORIGINS), or set"
                " api_keys"
            )
        return None

    def _is_here(self, name: str) -> bool:
        # Names under .localhost are this machine's by RFC 6761: nobody else can have one.
        return ANY in self._allowed or name in self._allowed or name.endswith(".localhost")

    def _may_call(self, origin: str) -> bool:
        if not self._origins.isdisjoint({ANY, origin}):
            return True
        scheme, _, rest = origin.partition("://")
        # Other schemes are those of installed programs; "null" is what pages in a sandbox say, whosever they are.
        return self._is_here(_name(rest)) if scheme in {"http", "https"} else origin != "null"


def _header(scope: Scope, wanted: bytes) -> str | None:
    for name, value in scope["headers"]:
        if name == wanted:
            return str(value, "latin-1").lower()
    return None


def _name(host: str) -> str:
    """A host without its port, and without the dot that may end a full name."""
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0].removesuffix(".")


def _denied(whom: str) -> SageLLMError:
    return SageLLMError(
        ErrorCode.PERMISSION_DENIED, f"this gateway has no API key and serves this machine alone, {whom}"
    )
