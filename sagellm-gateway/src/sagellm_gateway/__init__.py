"""The HTTP gateway of isagellm: OpenAI's API over any ``ControlPlane`` of ``sagellm_protocol``.

Knows nothing of torch, nor of how an engine is chosen. Names are imported when first used, so that
importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import create_app
    from .server import GatewayServer, serve
    from .settings import GatewaySettings, load_settings

__version__ = version("isagellm-gateway")

__all__ = ["GatewayServer", "GatewaySettings", "__version__", "create_app", "load_settings", "serve"]

_HOMES = {
    "GatewayServer": ".server",
    "GatewaySettings": ".settings",
    "create_app": ".app",
    "load_settings": ".settings",
    "serve": ".server",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
