"""What an operator may set of scaling. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass

from sagellm_protocol import ErrorCode, SageLLMError

from .predictors import predictor_named


@dataclass(frozen=True)
class ScalingSettings:
    """How many engines a model may have, what they are to achieve, and how eagerly their number follows the load.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` naming what is unknown or out of range.
    """

    min_engines: int = 1
    """0 lets a model go without engines while nobody asks for it; the first who does waits for one to start."""
    max_engines: int = 4
    ttft_s: float | None = 2.0
    """Mean time to the first token, from acceptance on, that is to be kept; ``None`` does not care."""
    itl_s: float | None = 0.1
    """Mean time between two tokens of an answer that is to be kept."""
    utilisation: float = 0.8
    """Share of the engines' time that the expected load may take."""
    predictor: str = "exponential_smoothing"
    """What the load of the next interval is taken to be: a name of :mod:`sagellm_control_plane.scaling.predictors`."""
    interval_s: float = 10.0
    """Between two decisions, and the span over which load is counted."""
    up_cooldown_s: float = 10.0
    """After engines were added, before more are."""
    down_after_s: float = 120.0
    """An engine goes only if it was superfluous for so long, and none came meanwhile."""
    hysteresis: float = 0.2
    """Load may grow by this share after an engine went without it being wanted back."""
    max_growth: float = 2.0
    """Engines may become so many times as many in one decision, and one more in any case."""
    idle_to_zero_s: float = 300.0
    """With ``min_engines=0``: the last engine goes when nothing was asked for so long."""
    correction_half_life_s: float = 600.0
    """Half of the caution learned by missing targets, though the load should have fitted, is lost in this time."""
    start_timeout_s: float = 120.0
    """Longest that a request waits for the first engine of its model to start."""
    max_waiting: int = 256
    """Requests that may wait for it; one more is refused."""

    def __post_init__(self) -> None:
        for name in ("min_engines", "up_cooldown_s", "down_after_s", "hysteresis", "idle_to_zero_s", "max_waiting"):
            self._at_least(name, 0)
        self._at_least("max_engines", max(1, self.min_engines))
        self._at_least("max_growth", 1)
        for name in ("interval_s", "correction_half_life_s", "start_timeout_s", "ttft_s", "itl_s"):
            if getattr(self, name) is not None:
                self._at_least(name, 0.001)
        if not 0 < self.utilisation <= 1:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST,
                f"utilisation must be more than 0 and at most 1 (got {self.utilisation!r})",
                "utilisation",
            )
        predictor_named(self.predictor)

    def _at_least(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if not isinstance(value, (int, float)) or not value >= least:
            raise SageLLMError(ErrorCode.INVALID_REQUEST, f"{name} must be {least:g} or more (got {value!r})", name)
