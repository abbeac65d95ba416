"""``cost_optimized`` under the name that SAGE knows."""

from __future__ import annotations

from sagellm_control_plane.legacy.errors import BadValue
from sagellm_control_plane.policies import Policy, policy_named

from .base import PlanePolicy


class CostOptimizedPolicy(PlanePolicy):
    """By priority and budget, where a token costs the least.

    Args:
        price_per_gpu_hour: What a decision's ``estimated_cost`` is reckoned with. It scales all instances alike, so
            that it changes no choice.

    Raises:
        ValueError: For a negative price.
    """

    def __init__(self, price_per_gpu_hour: float = 1.0) -> None:
        super().__init__("cost_optimized")
        if not price_per_gpu_hour >= 0:
            raise BadValue(f"price_per_gpu_hour must be 0 or more (got {price_per_gpu_hour!r})", "price_per_gpu_hour")
        self.price_per_gpu_hour = price_per_gpu_hour

    def _policy(self) -> Policy:
        return policy_named("cost_optimized")
