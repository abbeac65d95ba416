"""What an operator may set of a control plane, with defaults that serve one machine well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

from sagellm_protocol import ErrorCode, SageLLMError

from .circuit import Tolerance
from .scaling.settings import ScalingSettings


@dataclass(frozen=True)
class PlaneSettings:
    """Settings of a :class:`~sagellm_control_plane.service.ControlPlaneService`. Times are seconds."""

    policy: str = "fifo"
    """Order of the queue: a name of :mod:`sagellm_control_plane.policies`."""
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    """Shares of users beside others under the policy ``fair``; 1 where none is given."""
    routing: str = "cost"
    """Choice of an engine: a name of :mod:`sagellm_control_plane.routing`."""
    scaling: ScalingSettings | None = None
    """How the number of engines of each model that is started here follows its load; ``None``: it does not."""
    max_queued: int = 1024
    """Requests that may wait; one more is refused."""
    queue_timeout_s: float | None = 300.0
    """Longest wait in the queue, after which a request expires; ``None`` waits for ever."""
    max_attempts: int = 3
    """Engines that are tried for a request."""
    resume: bool = True
    """Go on with a stream on another engine where that gives the very same answer (greedy, or seeded)."""
    breaker_failures: int = 5
    """Requests in a row that an engine fails before it is sent nothing for a while,"""
    breaker_error_rate: float = 0.5
    """or the share of the newest twenty."""
    breaker_open_s: float = 5.0
    """That while; it doubles with each probe that fails, to eight times as much."""
    hedge_percentile: float | None = None
    """Ask a second engine when the first has not begun by this percentile of times to the first token (0.95, say);
    the first to begin answers. ``None`` never does."""
    default_capacity: int = 256
    """Sequences sent to an engine that does not say how many it runs at once."""
    slack: float = 0.25
    """Share of an engine's own limit sent there on top of it, so that its next sequences are at hand when one ends."""
    poll_interval_s: float = 1.0
    """Between two looks at an engine's health and load."""
    poll_timeout_s: float = 5.0
    failures_threshold: int = 2
    """Looks in a row that fail before an engine counts as dead."""
    render_timeout_s: float = 10.0
    """Longest an engine may take to render a prompt before another is asked."""
    abort_timeout_s: float = 5.0
    """Longest that tidying up after an abandoned attempt may hold its caller."""
    stop_timeout_s: float = 30.0
    """Longest an engine may take to stop before it is given up."""
    auto_restart: bool = True
    """Start an engine anew when it died, if this plane launched it."""
    max_restarts: int = 3
    restart_backoff_s: float = 1.0
    """Wait before the first restart; doubles with each."""
    restart_forgiven_s: float = 300.0
    """Health for this long makes earlier restarts forgotten."""
    registry: str | None = None
    """File in which engines and aliases are kept, so that a plane started anew, after whatever ended the one before,
    has the same ones; those that run are taken up."""
    lease_s: float | None = None
    """An engine that was not heard of for so long is lost, until it is heard of again. ``None`` is half a minute, or
    three looks where those take longer."""
    engines_outlive: bool = False
    """Let engines that can do so go on when the plane is stopped, for the next one; needs ``registry``."""
    discover: str | None = None
    """File that lists engines and aliases; it is watched."""
    discover_interval_s: float = 1.0
    """Between two looks at that file."""

    @property
    def tolerance(self) -> Tolerance:
        """What circuit breakers put up with."""
        return Tolerance(self.breaker_failures, self.breaker_error_rate, open_s=self.breaker_open_s)

    def __post_init__(self) -> None:
        for name in ("max_attempts", "default_capacity", "failures_threshold", "breaker_failures"):
            self._at_least(name, 1)
        for name in ("max_queued", "slack", "max_restarts", "restart_backoff_s", "restart_forgiven_s"):
            self._at_least(name, 0)
        for name in ("poll_interval_s", "poll_timeout_s", "render_timeout_s", "abort_timeout_s", "stop_timeout_s"):
            self._at_least(name, 0.001)
        if self.lease_s is not None:
            self._at_least("lease_s", self.poll_interval_s)
        self._at_least("discover_interval_s", 0.01)
        if self.engines_outlive and self.registry is None:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                "engines_outlive needs registry, a file by which the next plane finds them",
                "engines_outlive",
            )
        self._at_least("breaker_open_s", 0.001)
        if not 0 < self.breaker_error_rate <= 1:
            self._refuse("breaker_error_rate", "above 0 and at most 1")
        if self.hedge_percentile is not None and not 0 < self.hedge_percentile < 1:
            self._refuse("hedge_percentile", "between 0 and 1")
        if self.queue_timeout_s is not None:
            self._at_least("queue_timeout_s", 0.001)

    @property
    def lease(self) -> float:
        """Seconds of ``lease_s``, also where it is left to us."""
        return max(30.0, 3 * (self.poll_interval_s + self.poll_timeout_s)) if self.lease_s is None else self.lease_s

    def _at_least(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if not isinstance(value, (int, float)) or not value >= least:
            self._refuse(name, f"{least} or more")

    def _refuse(self, name: str, allowed: str) -> NoReturn:
        value = getattr(self, name)
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"{name} must be {allowed} (got {value!r})", name)

    @classmethod
    def of(cls, **options: Any) -> PlaneSettings:
        """Settings from keywords.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` naming an unknown keyword, and those there are.
        """
        known = [one.name for one in fields(cls)]
        for name in options:
            if name not in known:
                raise SageLLMError(
                    ErrorCode.INVALID_REQUEST, f"unknown setting {name!r}; there are {', '.join(known)}", name
                )
        return cls(**options)
