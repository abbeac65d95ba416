"""``adaptive`` under the name that SAGE knows."""

from __future__ import annotations

from typing import Any

from sagellm_control_plane.legacy.asking import Asked
from sagellm_control_plane.policies import TABLE, Policy, Scene, policy_named
from sagellm_control_plane.types import ExecutionInstance

from .base import PlanePolicy


class AdaptivePolicy(PlanePolicy):
    """Priority while something urgent waits, cost while instances are idle, service levels otherwise.

    A decision's metadata says in ``selected_policy`` which order was in force, and in ``order`` why.
    """

    def __init__(self) -> None:
        super().__init__("adaptive")

    def _policy(self) -> Policy:
        return policy_named("adaptive")

    def _decided(self, asked: Asked, instance: ExecutionInstance, scene: Scene) -> dict[str, Any]:
        in_force = type(policy_named("adaptive").phase(scene))
        return {"selected_policy": next(name for name, policy in TABLE.items() if policy is in_force)}
