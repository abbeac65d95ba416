"""``fifo`` under the name that SAGE knows."""

from __future__ import annotations

from sagellm_control_plane.policies import Policy, policy_named

from .base import PlanePolicy


class FIFOPolicy(PlanePolicy):
    """In order of arrival."""

    def __init__(self) -> None:
        super().__init__("fifo")

    def _policy(self) -> Policy:
        return policy_named("fifo")
