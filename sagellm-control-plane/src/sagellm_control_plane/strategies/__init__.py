"""Scheduling policies under SAGE's names, and by the names that settings take. The orders are :mod:`..policies`."""

from __future__ import annotations

from collections.abc import Callable

from sagellm_control_plane.legacy.errors import BadValue

from .adaptive import AdaptivePolicy
from .aegaeon import AegaeonPolicy
from .base import SchedulingPolicy
from .cost_optimized import CostOptimizedPolicy
from .fifo import FIFOPolicy
from .hybrid_policy import HybridSchedulingPolicy
from .priority import PriorityPolicy
from .slo_aware import SLOAwarePolicy

TABLE: dict[str, Callable[[], SchedulingPolicy]] = {
    "adaptive": AdaptivePolicy,
    "aegaeon": AegaeonPolicy,
    "cost_optimized": CostOptimizedPolicy,
    "fifo": FIFOPolicy,
    "hybrid": HybridSchedulingPolicy,
    "priority": PriorityPolicy,
    "slo_aware": SLOAwarePolicy,
}


def scheduling_policy_named(name: str) -> SchedulingPolicy:
    """The policy of that name.

    Raises:
        ValueError: For an unknown name, listing those there are.
    """
    if name not in TABLE:
        raise BadValue(f"unknown scheduling policy {name!r}; there are {', '.join(sorted(TABLE))}", "scheduling_policy")
    return TABLE[name]()


__all__ = [
    "TABLE",
    "AdaptivePolicy",
    "AegaeonPolicy",
    "CostOptimizedPolicy",
    "FIFOPolicy",
    "HybridSchedulingPolicy",
    "PriorityPolicy",
    "SLOAwarePolicy",
    "SchedulingPolicy",
    "scheduling_policy_named",
]
