"""Orders of service by name. A new one is a file and a line in the table here, or an entry point elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

from sagellm_control_plane._named import make

from .adaptive import Adaptive
from .base import Key, Policy, Preference, Refusal, Scene
from .cost_optimized import CostOptimized
from .fifo import Fifo
from .priority import Priority
from .slo_aware import SloAware

TABLE: dict[str, Callable[[], Policy]] = {
    "adaptive": Adaptive,
    "cost_optimized": CostOptimized,
    "fifo": Fifo,
    "priority": Priority,
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


__all__ = ["TABLE", "Key", "Policy", "Preference", "Refusal", "Scene", "policy_named"]
