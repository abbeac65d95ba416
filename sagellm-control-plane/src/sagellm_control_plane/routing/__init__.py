"""Ways to choose an engine, by name. A new one is a file and a line in the table here, or an entry point elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

from sagellm_control_plane._named import make

from .affinity import Affinity
from .base import Router
from .cheapest import Cheapest
from .cost import Cost, ToldCost
from .draw import Draw
from .least_load import LeastLoad
from .least_queued import LeastQueued
from .locality import Locality
from .lora import LoraAware
from .lowest_latency import LowestLatency
from .phases import Phased, PhaseRule, able
from .power_of_two import PowerOfTwo
from .predicted import Predicted
from .round_robin import RoundRobin
from .topology import Topology
from .weighted import Weighted

TABLE: dict[str, Callable[[], Router]] = {
    "affinity": Affinity,
    "cheapest": Cheapest,
    "cost": Cost,
    "least_load": LeastLoad,
    "least_queued": LeastQueued,
    "locality": Locality,
    "lora_aware": LoraAware,
    "lowest_latency": LowestLatency,
    "power_of_two": PowerOfTwo,
    "predicted_latency": Predicted,
    "prefill_decode": Phased,
    "prefix_events": ToldCost,
    "random": Draw,
    "round_robin": RoundRobin,
    "topology_aware": Topology,
    "weighted": Weighted,
}


def router_named(name: str) -> Router:
    """The way to choose of that name.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for an unknown name, listing those there are.
    """
    return make(name, TABLE, _is_router, "routing strategy")


def _is_router(made: object) -> TypeGuard[Router]:
    return isinstance(made, Router)


__all__ = ["TABLE", "Cheapest", "LowestLatency", "PhaseRule", "Router", "ToldCost", "able", "router_named"]
