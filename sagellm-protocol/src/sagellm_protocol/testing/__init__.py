"""What implementers and users of the contract test with: a mock engine, fakes, clocks and conformance suites.

The names here load when they are first used: the mock engine needs neither pytest nor NumPy, which the suites do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import check_stream, read_all
    from .clock import Clock, VirtualClock, WallClock
    from .fakes import FakeControlPlane, ScriptedEngine
    from .mock_engine import MockEngine

_HOME = {
    "Clock": "clock",
    "FakeControlPlane": "fakes",
    "MockEngine": "mock_engine",
    "ScriptedEngine": "fakes",
    "VirtualClock": "clock",
    "WallClock": "clock",
    "check_stream": "check",
    "read_all": "check",
}

__all__ = [
    "Clock",
    "FakeControlPlane",
    "MockEngine",
    "ScriptedEngine",
    "VirtualClock",
    "WallClock",
    "check_stream",
    "read_all",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
