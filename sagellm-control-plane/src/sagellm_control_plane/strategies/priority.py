"""``priority`` under the name that SAGE knows."""

from __future__ import annotations

from sagellm_control_plane.policies import Policy, policy_named

from .base import PlanePolicy


class PriorityPolicy(PlanePolicy):
    """The more important first; CRITICAL and HIGH where answers come soonest."""

    def __init__(self) -> None:
        super().__init__("priority")

    def _policy(self) -> Policy:
        return policy_named("priority")
