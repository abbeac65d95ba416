"""Orders of service by name. A new one is a file and a line in the table here, or an entry point elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

from sagellm_control_plane._named import make

from .adaptive import Adaptive
from .aegaeon import Aegaeon
from .base import Key, Policy, Preference, Refusal, Scene
from .cost_optimized import CostOptimized
from .fair import Fair
from .fifo import Fifo
from .hybrid import Hybrid
from .priority import Priority
from .shortest_first import ShortestFirst
from .slo_aware import SloAware

TABLE: dict[str, Callable[[], Policy]] = {
    "adaptive": Adaptive,
    "aegaeon": Aegaeon,
    "cost_optimized": CostOptimized,
    "fair": Fair,
    "fifo": Fifo,
    "hybrid": Hybrid,
    "priority": Priority,
    "shortest_first": ShortestFirst,
    "slo_aware": SloAware,
}


def policy_named(name: str) -> Policy:
    """The order of service of that name.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for an unknown name, listing those there are.
    """
    return make(name, TABLE, _is_policy, "queue policy")


def _is_policy(made: object) -> TypeGuard[Policy]:
    return isinstance(made, Policy)


__all__ = ["TABLE", "Fair", "Key", "Policy", "Preference", "Refusal", "Scene", "policy_named"]
