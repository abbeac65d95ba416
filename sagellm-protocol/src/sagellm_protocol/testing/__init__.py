"""What implementers and users of the contract test with: a mock engine, fakes, clocks and conformance suites.

The names here load when they are first used: the mock engine needs neither pytest nor NumPy, which the suites do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clock import Clock, VirtualClock, WallClock
    from .mock_engine import MockEngine

_HOME = {
    "Clock": "clock",
    "MockEngine": "mock_engine",
    "VirtualClock": "clock",
    "WallClock": "clock",
}

__all__ = ["Clock", "MockEngine", "VirtualClock", "WallClock"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
