"""Ways to choose an engine, by name. A new one is a file and a line in the table here, or an entry point elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

from sagellm_control_plane._named import make

from .affinity import Affinity
from .base import EngineView, Routed, Router
from .cheapest import Cheapest
from .draw import Draw
from .least_load import LeastLoad, load_tokens
from .lowest_latency import LowestLatency
from .power_of_two import PowerOfTwo
from .round_robin import RoundRobin

TABLE: dict[str, Callable[[], Router]] = {
    "affinity": Affinity,
    "cheapest": Cheapest,
    "least_load": LeastLoad,
    "lowest_latency": LowestLatency,
    "power_of_two": PowerOfTwo,
    "random": Draw,
    "round_robin": RoundRobin,
}


def router_named(name: str) -> Router:
    """The way to choose of that name.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for an unknown name, listing those there are.
    """
    return make(name, TABLE, _is_router, "routing strategy")


def _is_router(made: object) -> TypeGuard[Router]:
    return isinstance(made, Router)


__all__ = ["TABLE", "Cheapest", "EngineView", "LowestLatency", "Routed", "Router", "load_tokens", "router_named"]
