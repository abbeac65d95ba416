"""The least slack first, and no deadline accepted that cannot be kept."""

from __future__ import annotations

import math
from bisect import bisect_right, insort

from sagellm_control_plane.observing import Subject

from .base import Key, Policy, Preference, Refusal, Scene
from .rates import ServiceRate

URGENT = 0.7
"""Share of the allowed time after which latency matters more than balance."""


def urgency(request: Subject, now: float) -> float:
    """Share of its allowed time that a request has used: 0 without a deadline, 1 once it is missed."""
    if request.deadline is None:
        return 0.0
    allowed = request.deadline - request.arrived
    if allowed <= 0:
        return 1.0
    return min(1.0, max(0.0, (now - request.arrived) / allowed))


class SloAware(Policy):
    """Least slack first: what is left until the deadline, less the time the work itself takes. Then arrival.

    The aim of a request is its deadline, or else its hoped-for time to the first token; one without either is served
    as if it had to begin within ``patience_s``, so that deadlines cannot starve it. Slack shrinks at the same pace for
    all, so that the order does not change while they wait.

    Earliest deadline first collapses once deadlines are missed: work is spent on what is late already. So a request is
    refused when those before it, at the rate at which prompts were begun of late, take longer than its deadline leaves.

    Args:
        patience_s: Aim of a request that states none.
    """

    def __init__(self, patience_s: float = 60.0) -> None:
        self._patience_s = patience_s
        self._rate = ServiceRate()
        self._ahead: list[tuple[float, int, int]] = []
        self._keys: dict[int, tuple[float, int, int]] = {}

    def key(self, request: Subject, scene: Scene) -> Key:
        """The moment at which it has to begin."""
        return (self._latest_start(request),)

    def admit(self, request: Subject, scene: Scene) -> Refusal | None:
        """Refuse a deadline that the work before it leaves no time for."""
        rate = self._rate.tokens_per_s(scene.now)
        if request.deadline is None or rate is None:
            return None
        position = bisect_right(self._ahead, (self._latest_start(request), request.number, 0))
        ahead = sum(tokens for _, _, tokens in self._ahead[:position])
        needed, left = (ahead + request.prompt_tokens) / rate, request.deadline - scene.now
        if needed <= left:
            return None
        return Refusal(
            f"the deadline of {left * 1000:.0f} ms cannot be met: the {ahead} prompt tokens to be served before it and"
            f" its own {request.prompt_tokens} take {needed * 1000:.0f} ms at {rate:.0f} tokens a second",
            max(1.0, needed - left),
        )

    def preference(self, request: Subject, scene: Scene) -> Preference:
        """Latency once most of the allowed time is gone."""
        return Preference.LATENCY if urgency(request, scene.now) > URGENT else Preference.BALANCE

    def reason(self, scene: Scene) -> str:
        """Always the same."""
        return "slo_aware: least slack first"

    def queued(self, request: Subject, now: float) -> None:
        """It is ahead of those with more slack."""
        self._rate.waiting(now, len(self._keys) + 1)
        entry = self._keys[request.number] = (self._latest_start(request), request.number, request.prompt_tokens)
        insort(self._ahead, entry)

    def dropped(self, request: Subject, now: float) -> None:
        """It is ahead of nothing any more."""
        entry = self._keys.pop(request.number, None)
        if entry is not None:
            del self._ahead[bisect_right(self._ahead, entry) - 1]
        self._rate.waiting(now, len(self._keys))

    def placed(self, request: Subject, row: int, now: float) -> None:
        """It is ahead of nothing any more, and counts as served."""
        self.dropped(request, now)
        self._rate.served(request.prompt_tokens)

    def _latest_start(self, request: Subject) -> float:
        if request.deadline is not None:
            aim = request.deadline
        else:
            aim = request.arrived + (request.ttft_slo_s if request.ttft_slo_s is not None else self._patience_s)
        slowest = self._rate.last
        work = request.prompt_tokens / slowest if slowest else 0.0
        return aim - work if math.isfinite(work) else aim
