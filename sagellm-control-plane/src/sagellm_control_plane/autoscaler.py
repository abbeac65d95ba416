"""How many instances for prompts and for answers there should be, decided each interval from what was measured.

For whoever starts and stops instances themselves; the plane scales its own by :mod:`sagellm_control_plane.scaling`,
whose arithmetic this shares. What an instance can do is learned from the figures, or read off a profile; while neither
is there, nothing is changed.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from sagellm_protocol import SageLLMError

from .background import Background
from .board import Role
from .legacy.errors import BadValue
from .load_predictor import LoadPredictor
from .metrics_collector import SystemMetrics
from .performance_interpolator import DecodeInterpolator, PrefillInterpolator
from .scaling.costs import Costs
from .scaling.sizing import Demand, Targets, engines_needed
from .types import ScalingDecision

log = logging.getLogger(__name__)
ROUNDING = 0.02
"""Share of an instance that nothing is started for."""
LEAST_CORRECTION, MOST_CORRECTION = 0.25, 4.0


class Collector(Protocol):
    """Where figures come from."""

    async def collect_metrics(self, interval_sec: int = 60) -> SystemMetrics:
        """Those of the last interval."""
        ...


@dataclass
class AutoscalerConfig:
    """Limits and targets."""

    target_ttft_ms: float = 200.0
    target_itl_ms: float = 50.0
    adjustment_interval_sec: int = 60
    min_prefill_instances: int = 1
    max_prefill_instances: int = 10
    min_decode_instances: int = 1
    max_decode_instances: int = 20
    max_gpu_budget: int = 32
    """GPUs of all instances together."""
    prefill_gpus_per_instance: int = 4
    decode_gpus_per_instance: int = 1
    load_predictor_type: str = "constant"
    prediction_window_size: int = 10
    profile_data_dir: str | None = None
    """Folder of profiles; see :mod:`sagellm_control_plane.performance_interpolator`."""
    enable_online_learning: bool = True
    """Learn what an instance can do from the figures."""
    enable_correction: bool = True
    """Ask for more where figures were worse than expected, and for less where they were better."""
    no_operation: bool = False
    """Decide, and leave it at that."""


class Autoscaler:
    """Decides each interval.

    Args:
        config: Limits and targets.
        metrics_collector: A :class:`Collector`.
        executor_callback: Called with a :class:`ScalingDecision` that changes something; may be a coroutine function.

    Raises:
        ValueError: For limits that contradict each other, or an unknown predictor.
    """

    def __init__(
        self,
        config: AutoscalerConfig,
        metrics_collector: Collector,
        executor_callback: Callable[[ScalingDecision], Any],
    ) -> None:
        _check(config)
        self.config = config
        self._collector, self._callback = metrics_collector, executor_callback
        self._predictor = LoadPredictor.create(config.load_predictor_type, config.prediction_window_size)
        self._prefill = PrefillInterpolator(config.profile_data_dir)
        self._decode = DecodeInterpolator(config.profile_data_dir)
        self._prefill.gpus_per_instance = config.prefill_gpus_per_instance
        self._decode.gpus_per_instance = config.decode_gpus_per_instance
        self._corrections = {"prefill": 1.0, "decode": 1.0}
        self._background = Background()
        self._running: asyncio.Task[None] | None = None
        self._metrics: SystemMetrics | None = None
        self._decision: ScalingDecision | None = None
        self._before: tuple[int, int] | None = None
        self._decided = self._applied = 0
        self._error: str | None = None

    async def start(self) -> None:
        """Decide each interval from now on."""
        if self._running is None:
            self._running = self._background.spawn(self._run(), "autoscaler")

    async def stop(self) -> None:
        """Decide nothing any more."""
        self._running = None
        await self._background.cancel()

    def get_status(self) -> dict[str, Any]:
        """What was last measured, decided and why."""
        return {
            "enabled": True,
            "running": self._running is not None,
            "no_operation": self.config.no_operation,
            "adjustment_interval_sec": self.config.adjustment_interval_sec,
            "load_predictor_type": self.config.load_predictor_type,
            "decisions": self._decided,
            "applied": self._applied,
            "corrections": dict(self._corrections),
            "last_metrics": asdict(self._metrics) if self._metrics is not None else None,
            "last_decision": asdict(self._decision) if self._decision is not None else None,
            "last_error": self._error,
        }

    async def adjust(self) -> ScalingDecision:
        """Decide now, and tell the callback of what changes."""
        metrics = await self._collector.collect_metrics(self.config.adjustment_interval_sec)
        # A fitted predictor takes a while.
        decision = await asyncio.to_thread(self.decide, metrics)
        there = (metrics.num_prefill_instances, metrics.num_decode_instances)
        if there != (decision.num_prefill_instances, decision.num_decode_instances) and not self.config.no_operation:
            self._applied += 1
            done = self._callback(decision)
            if inspect.isawaitable(done):
                await done
        return decision

    def decide(self, metrics: SystemMetrics) -> ScalingDecision:
        """The instances there should be, from the figures of an interval and those before it."""
        self._metrics, self._decided = metrics, self._decided + 1
        self._predictor.add_data_point(metrics.num_requests, metrics.avg_isl, metrics.avg_osl)
        self._learn(metrics)
        requests, isl, osl = (value or 0.0 for value in self._predictor.predict())
        load = {"num_requests": requests, "avg_isl": isl, "avg_osl": osl}
        there = (metrics.num_prefill_instances, metrics.num_decode_instances)
        try:
            prefill, decode, why = self._wanted(requests / self.config.adjustment_interval_sec, isl, osl)
        except SageLLMError as error:
            prefill, decode, why = (*there, f"unchanged: {error.message}")
        wanted, bounds = self._bounded(prefill, decode)
        wanted, held = self._held(wanted, there)
        self._decision = ScalingDecision(
            num_prefill_instances=wanted[0],
            num_decode_instances=wanted[1],
            predicted_load=load,
            reason=why + bounds + held,
            metadata={"current": there, "corrections": dict(self._corrections)},
        )
        return self._decision

    # --- within -------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                await self.adjust()
                self._error = None
            except Exception as error:
                # One interval without figures must not be the last that is looked at.
                self._error = f"{type(error).__name__}: {error}"
                log.exception("the autoscaler could not decide")
            await asyncio.sleep(self.config.adjustment_interval_sec)

    def _learn(self, metrics: SystemMetrics) -> None:
        """Compare the figures with what was expected, then take them in."""
        if not metrics.is_valid():
            return
        context = metrics.avg_isl + metrics.avg_osl / 2
        concurrency = self._concurrency(metrics)
        if metrics.avg_ttft_ms:
            self._correct("prefill", metrics.avg_ttft_ms, lambda: self._prefill.interpolate_ttft(metrics.avg_isl))
            if self.config.enable_online_learning:
                self._prefill.update_online_model(metrics.avg_isl, metrics.avg_ttft_ms)
        if metrics.avg_itl_ms and concurrency:
            self._correct("decode", metrics.avg_itl_ms, lambda: self._decode.interpolate_itl(concurrency, context))
            if self.config.enable_online_learning:
                self._decode.update_online_model(concurrency, context, metrics.avg_itl_ms)

    def _concurrency(self, metrics: SystemMetrics) -> float:
        """Answers at once on one instance: how many come while one is under way (Little's law)."""
        if metrics.avg_itl_ms is None or not metrics.num_decode_instances:
            return 0.0
        each_s = metrics.avg_osl * metrics.avg_itl_ms / 1000
        rate = metrics.num_requests / self.config.adjustment_interval_sec
        return max(1.0, rate * each_s / metrics.num_decode_instances)

    def _correct(self, part: str, observed: float, expected: Callable[[], float]) -> None:
        if not self.config.enable_correction:
            return
        try:
            ratio = observed / expected()
        except SageLLMError:
            # Nothing was expected yet.
            return
        self._corrections[part] = min(MOST_CORRECTION, max(LEAST_CORRECTION, ratio))

    def _wanted(self, requests_s: float, isl: float, osl: float) -> tuple[int, int, str]:
        if requests_s <= 0:
            return 0, 0, "no load is expected"
        config = self.config
        demand = Demand(requests_s, requests_s * isl, requests_s * osl)
        ttft_s = self._prefill.interpolate_ttft(isl) / 1000 * self._corrections["prefill"]
        targets = Targets(ttft_s=config.target_ttft_ms / 1000)
        prompts = engines_needed(demand, Costs(prompt_token_s=ttft_s / isl), targets, role=Role.PREFILL)
        itl_ms = config.target_itl_ms / self._corrections["decode"]
        per_gpu, _, _ = self._decode.find_best_throughput_per_gpu(itl_ms, isl + osl / 2)
        costs = Costs(output_token_s=1 / (per_gpu * config.decode_gpus_per_instance))
        answers = engines_needed(demand, costs, Targets(), role=Role.DECODE)
        why = (
            f"{requests_s:.2f} requests/s of {isl:.0f}+{osl:.0f} tokens need {prompts.engines:.2f} instances for"
            f" prompts (by {prompts.limit}) and {answers.engines:.2f} for answers ({per_gpu:.0f} tokens/s a GPU within"
            f" {config.target_itl_ms:g} ms)"
        )
        return math.ceil(prompts.engines - ROUNDING), math.ceil(answers.engines - ROUNDING), why

    def _bounded(self, prefill: int, decode: int) -> tuple[tuple[int, int], str]:
        config = self.config
        bounded = [
            min(config.max_prefill_instances, max(config.min_prefill_instances, prefill)),
            min(config.max_decode_instances, max(config.min_decode_instances, decode)),
        ]
        least = (config.min_prefill_instances, config.min_decode_instances)
        gpus = (config.prefill_gpus_per_instance, config.decode_gpus_per_instance)
        asked = tuple(bounded)
        while sum(count * each for count, each in zip(bounded, gpus, strict=True)) > config.max_gpu_budget:
            # The part that is furthest above its least gives way.
            part = max((0, 1), key=lambda part: (bounded[part] - least[part]) / max(1, asked[part]))
            bounded[part] -= 1
        budget = "" if tuple(bounded) == asked else f"; max_gpu_budget={config.max_gpu_budget} allows {tuple(bounded)}"
        limits = "" if asked == (prefill, decode) else f"; limits allow {asked}"
        return (bounded[0], bounded[1]), limits + budget

    def _held(self, wanted: tuple[int, int], there: tuple[int, int]) -> tuple[tuple[int, int], str]:
        """An instance goes only if two intervals in a row could do without it."""
        before, self._before = self._before, wanted
        held = [
            now_ if want < now_ and (before is None or before[part] >= now_) else want
            for part, (want, now_) in enumerate(zip(wanted, there, strict=True))
        ]
        bounded, _ = self._bounded(held[0], held[1])
        return bounded, "" if bounded == wanted else "; fewer once another interval agrees"


def _check(config: AutoscalerConfig) -> None:
    for name in (
        "target_ttft_ms",
        "target_itl_ms",
        "adjustment_interval_sec",
        "prefill_gpus_per_instance",
        "decode_gpus_per_instance",
    ):
        if not getattr(config, name) > 0:
            raise BadValue(f"{name} must be over 0 (got {getattr(config, name)!r})", name)
    for part in ("prefill", "decode"):
        least, most = getattr(config, f"min_{part}_instances"), getattr(config, f"max_{part}_instances")
        if not 0 <= least <= most:
            raise BadValue(f"min_{part}_instances={least} and max_{part}_instances={most} contradict each other")
    needed = (
        config.min_prefill_instances * config.prefill_gpus_per_instance
        + config.min_decode_instances * config.decode_gpus_per_instance
    )
    if needed > config.max_gpu_budget:
        raise BadValue(f"the least instances take {needed} GPUs, and max_gpu_budget is {config.max_gpu_budget}")
