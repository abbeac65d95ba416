"""``slo_aware`` under the name that SAGE knows."""

from __future__ import annotations

from sagellm_control_plane.policies import Policy, policy_named

from .base import PlanePolicy


class SLOAwarePolicy(PlanePolicy):
    """The least slack until the deadline first; where answers come soonest once most of the time is gone."""

    def __init__(self) -> None:
        super().__init__("slo_aware")

    def _policy(self) -> Policy:
        return policy_named("slo_aware")
