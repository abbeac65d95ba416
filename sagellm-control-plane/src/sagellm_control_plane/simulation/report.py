"""What a simulation found: counts that add up, latencies, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from .requests import SimRequest
from .sketch import Sketch

MOST_USERS = 100_000
"""Tenants whose service is counted; later ones are counted together."""


@dataclass
class Report:
    """Figures of one run. Times are seconds; memory is bounded whatever the number of requests."""

    policy: str
    routing: str
    engines: int
    ttft_slo_s: float
    tpot_slo_s: float
    arrived: int = 0
    completed: int = 0
    refused: int = 0
    """At the door, by the policy or the bound of the queue."""
    expired: int = 0
    """In the queue, past their deadline."""
    failed: int = 0
    """Too long for any engine."""
    good: int = 0
    """Completed within both objectives."""
    late: int = 0
    """First token later than the objective."""
    prompt_tokens: int = 0
    hit_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    span_s: float = 0.0
    """First arrival to last ending."""
    busy_s: tuple[float, ...] = ()
    """Time that each engine computed."""
    device_s: float = 0.0
    """Devices held, over the span."""
    longest_queue: int = 0
    ttft: Sketch = field(default_factory=Sketch)
    tpot: Sketch = field(default_factory=Sketch)
    latency: Sketch = field(default_factory=Sketch)
    waited: Sketch = field(default_factory=Sketch)
    """In the plane's queue."""
    by_user: dict[str, tuple[int, float]] = field(default_factory=dict)

    def began(self, request: SimRequest) -> None:
        """A first token came."""
        assert request.first_at is not None
        ttft = request.first_at - request.arrived
        self.ttft.add(ttft)
        self.late += ttft > self.ttft_slo_s
        if request.user is not None:
            user = request.user if request.user in self.by_user or len(self.by_user) < MOST_USERS else "others"
            count, total = self.by_user.get(user, (0, 0.0))
            self.by_user[user] = (count + 1, total + ttft)

    def ended(self, request: SimRequest, now: float) -> None:
        """A last token came."""
        assert request.first_at is not None
        self.completed += 1
        self.output_tokens += request.output_tokens
        self.latency.add(now - request.arrived)
        tpot = 0.0
        if request.output_tokens > 1:
            tpot = (now - request.first_at) / (request.output_tokens - 1)
            self.tpot.add(tpot)
        self.good += request.first_at - request.arrived <= self.ttft_slo_s and tpot <= self.tpot_slo_s

    @property
    def goodput_rps(self) -> float:
        """Requests a second that kept both objectives."""
        return self.good / self.span_s if self.span_s else 0.0

    @property
    def hit_rate(self) -> float | None:
        """Share of prompt tokens found in caches."""
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens else None

    @property
    def balance(self) -> float | None:
        """Jain's index of the engines' busy time: 1 is even, 1 / engines is all on one."""
        return jain(self.busy_s)

    @property
    def fairness(self) -> float | None:
        """Jain's index of the users' mean time to the first token; ``None`` where requests name no users."""
        return jain(tuple(total / count for count, total in self.by_user.values()))

    @property
    def cost(self) -> float | None:
        """Device-seconds a thousand output tokens."""
        return self.device_s / self.output_tokens * 1000 if self.output_tokens else None

    def figures(self) -> dict[str, float | int | str | None]:
        """All figures, flat; what cannot be told is ``None``."""
        share = self.good / self.arrived if self.arrived else None
        found: dict[str, float | int | str | None] = {
            "policy": self.policy,
            "routing": self.routing,
            "engines": self.engines,
            "arrived": self.arrived,
            "completed": self.completed,
            "refused": self.refused,
            "expired": self.expired,
            "failed": self.failed,
            "rate_rps": self.arrived / self.span_s if self.span_s else None,
            "goodput_rps": self.goodput_rps,
            "good_share": share,
            "ttft_mean_s": self.ttft.mean,
            "tpot_mean_s": self.tpot.mean,
            "latency_mean_s": self.latency.mean,
            "queue_mean_s": self.waited.mean,
            "longest_queue": self.longest_queue,
            "hit_rate": self.hit_rate,
            "balance": self.balance,
            "fairness": self.fairness,
            "device_s_per_1k_tokens": self.cost,
            "preemptions": self.preemptions,
        }
        for name, sketch in (("ttft", self.ttft), ("tpot", self.tpot)):
            for percent in (50, 90, 99):
                found[f"{name}_p{percent}_s"] = sketch.quantile(percent / 100)
        return found


def jain(values: tuple[float, ...]) -> float | None:
    """Fairness index (Jain et al. 1984): 1 when all are equal; ``None`` of nothing."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None
