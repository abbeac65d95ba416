"""Short prompts first, but no long one for ever later."""

from __future__ import annotations

from sagellm_control_plane.observing import Subject

from .base import Key, Policy, Scene

AGEING_TPS = 500.0
"""Tokens that a second of waiting is worth."""


class ShortestFirst(Policy):
    """Fewest prompt tokens first, less what waiting has earned.

    Shortest-first alone starves long prompts (a mean that looks good over a 99th percentile of minutes). Here one of
    ``n`` tokens is overtaken only by requests that come within ``n / ageing_tps`` seconds of it. All age alike, so that
    the order between two never changes.

    Args:
        ageing_tps: Tokens a second.
    """

    def __init__(self, ageing_tps: float = AGEING_TPS) -> None:
        self._ageing_tps = ageing_tps

    def key(self, request: Subject, scene: Scene) -> Key:
        """Its length, put off by its arrival."""
        return (request.prompt_tokens + self._ageing_tps * request.arrived,)

    def reason(self, scene: Scene) -> str:
        """Always the same."""
        return f"shortest_first: fewest prompt tokens, {self._ageing_tps:g} forgiven for each second of waiting"
