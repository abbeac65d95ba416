"""How many engines a model is to have: decided from events, over plain values, with the time given.

The same code decides live and in the simulator. It starts and stops nothing. Three things speak, and the loudest is
heard: what the expected load needs by what tokens cost (:mod:`.sizing`), targets that are missed all the same, and
requests that wait where nothing is known yet.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from sagellm_control_plane.board import Role

from .costs import Costs
from .decision import Decision, PoolView
from .forecast import Forecast
from .settings import ScalingSettings
from .signals import SignalMeter, Signals
from .sizing import Demand, Size, Targets, engines_needed

MOST_CORRECTION = 8.0
ROUNDING = 0.02
"""Share of an engine that nothing is started for."""


class Autoscaler:
    """Decides for one model.

    Args:
        settings: Limits, targets and tempers.
        serves: Whether requests for a name belong to the model.
        owns: Whether the engine of a row of the board does.
        role: Which part of a request's work its engines take.
    """

    def __init__(
        self,
        settings: ScalingSettings,
        serves: Callable[[str], bool],
        owns: Callable[[int], bool],
        role: Role = Role.BOTH,
    ) -> None:
        self.settings = settings
        self.meter = SignalMeter(serves, owns)
        """To be told what happens: an observer."""
        self.last: Decision | None = None
        self.correction = 1.0
        """More engines than reckoned, so many times, kept targets when fewer missed them."""
        self._role = role
        self._forecast = Forecast(settings.predictor)
        self._targets = Targets(settings.ttft_s, settings.itl_s, settings.utilisation)
        self._wants: deque[tuple[float, int]] = deque()
        self._grown_at = self._unsettled_at = -math.inf

    def decide(self, view: PoolView, now: float) -> Decision | None:
        """The number of engines from now on.

        Args:
            view: What there is.
            now: Monotonic seconds.

        Returns:
            ``None`` while a span of :attr:`ScalingSettings.interval_s` lasts, unless one waits and no engine is there.
        """
        decision = self.at_once(view, now)
        if decision is not None:
            return decision
        signals = self.observe(now)
        return None if signals is None else self.conclude(view, signals, self.foresee(signals), now)

    def at_once(self, view: PoolView, now: float) -> Decision | None:
        """What cannot wait for the end of a span."""
        settings, pending = self.settings, self.meter.pending
        if view.engines < settings.min_engines:
            reason = f"{settings.min_engines} is the least (min_engines)"
            return self._keep(Decision(now, view.engines, settings.min_engines, reason), grown=True)
        if view.engines == 0 and pending:
            reason = f"{pending} requests wait and no engine is there"
            return self._keep(Decision(now, 0, 1, reason, {"pending": pending}), grown=True)
        return None

    def observe(self, now: float) -> Signals | None:
        """What happened in the span that is over, if one is."""
        if not self.meter.started:
            self.meter.begin(now)
        return self.meter.take(now) if self.meter.span_s(now) >= self.settings.interval_s else None

    def foresee(self, signals: Signals) -> Demand:
        """The load of the next span. With a fitted predictor this takes a while: it touches nothing that events do."""
        self._forecast.observe(signals)
        return self._with_backlog(signals)

    def conclude(self, view: PoolView, signals: Signals, demand: Demand, now: float) -> Decision:
        """The decision that follows."""
        settings = self.settings
        if view.starting:
            self._unsettled_at = now
        costs = self.meter.costs.costs()
        size = self._size(demand, costs, view)
        wanted, reason = self._wanted(signals, demand, size, costs, view, now)
        wanted, reason = self._in_time(wanted, reason, view, signals, now)
        bounded = min(max(wanted, settings.min_engines), settings.max_engines)
        if bounded != wanted:
            limit = "min_engines" if bounded > wanted else "max_engines"
            reason += f"; {limit} allows {bounded}"
        decision = Decision(now, view.engines, bounded, reason, _inputs(signals, demand, costs, size, self.correction))
        return self._keep(decision, grown=bounded > view.engines)

    def _keep(self, decision: Decision, *, grown: bool) -> Decision:
        if grown:
            self._grown_at = self._unsettled_at = decision.at
        self.last = decision
        return decision

    # --- what is wanted -----------------------------------------------------------------------------------------------

    def _with_backlog(self, signals: Signals) -> Demand:
        """The load expected, and beside it what has piled up, to be gone by the next decision."""
        demand, settings = self._forecast.demand(), self.settings
        in_time = demand.prompt_tokens_s * (settings.ttft_s or settings.interval_s)
        excess = max(0.0, signals.pending_tokens - in_time)
        if not excess:
            return demand
        requests = signals.pending * excess / signals.pending_tokens
        return replace(
            demand,
            prompt_tokens_s=demand.prompt_tokens_s + excess / settings.interval_s,
            output_tokens_s=demand.output_tokens_s + requests * self._forecast.answer_tokens / settings.interval_s,
            requests_s=demand.requests_s + requests / settings.interval_s,
        )

    def _size(self, demand: Demand, costs: Costs | None, view: PoolView) -> Size | None:
        if costs is None:
            return None
        size = engines_needed(demand, costs, self._targets, max_num_seqs=view.max_num_seqs, role=self._role)
        return replace(size, engines=size.engines * self.correction)

    def _wanted(
        self, signals: Signals, demand: Demand, size: Size | None, costs: Costs | None, view: PoolView, now: float
    ) -> tuple[int, str]:
        """What the load needs, and what missed targets and waiting requests ask for beyond it."""
        engines, settings = view.engines, self.settings
        wanted = engines
        if size is not None:
            reason = (
                f"{demand.requests_s:.2f} requests/s of {_each(demand.prompt_tokens_s, demand)}"
                f"+{_each(demand.output_tokens_s, demand)} tokens need {size.engines:.2f} engines (by {size.limit})"
            )
            up, down = math.ceil(size.engines - ROUNDING), math.ceil(size.engines * (1 + settings.hysteresis))
            wanted = up if up > engines else min(engines, down)
        elif signals.in_flight or signals.arrivals:
            reason = "what tokens cost was not measured yet"
        else:
            wanted, reason = 0, "nothing is asked for"
        missed = self._missed(signals, costs, view) if self._settled(now) else None
        if missed is None:
            half = 0.5 ** (signals.span_s / settings.correction_half_life_s)
            self.correction = 1 + (self.correction - 1) * half
        elif wanted <= engines:
            wanted, reason = engines + 1, f"{missed}; {reason}"
            if size is not None and size.engines > 0:
                learned = self.correction * (engines + 0.01) / size.engines
                self.correction = min(MOST_CORRECTION, max(self.correction, learned))
        if engines:
            wanted = min(wanted, max(engines + 1, math.floor(engines * settings.max_growth)))
        return wanted, reason

    def _settled(self, now: float) -> bool:
        """Whether figures are of engines that are all there: those who waited for one tell of the past."""
        return now - self._unsettled_at >= 2 * self.settings.interval_s

    def _missed(self, signals: Signals, costs: Costs | None, view: PoolView) -> str | None:
        """A target that is missed and that more engines would help to keep."""
        settings = self.settings
        if not view.ready or signals.concurrency <= view.ready:
            # As many engines as requests at once: each request has one for itself already.
            return None
        if settings.ttft_s is not None and signals.ttft_s is not None and signals.ttft_s > settings.ttft_s:
            return f"the first token takes {signals.ttft_s:.2f} s, more than {settings.ttft_s:g} s"
        unbegun = signals.ttft_s is None and signals.pending > 0 and signals.arrivals == 0
        if settings.ttft_s is not None and unbegun and signals.span_s > settings.ttft_s:
            return f"{signals.pending} requests wait, and none began"
        reachable = costs is None or settings.itl_s is None or costs.step_s < settings.itl_s
        if settings.itl_s is not None and signals.itl_s is not None and signals.itl_s > settings.itl_s and reachable:
            return f"tokens take {signals.itl_s * 1000:.0f} ms, more than {settings.itl_s * 1000:.0f} ms"
        return None

    # --- when ---------------------------------------------------------------------------------------------------------

    def _in_time(self, wanted: int, reason: str, view: PoolView, signals: Signals, now: float) -> tuple[int, str]:
        """Hold back what comes too soon after a change; tell apart a lull and the end."""
        settings, engines = self.settings, view.engines
        if (
            settings.min_engines == 0
            and engines
            and signals.in_flight == 0
            and signals.idle_s >= settings.idle_to_zero_s
        ):
            return 0, f"nothing was asked for in {signals.idle_s:.0f} s (idle_to_zero_s)"
        # An engine is kept while there are requests or until the model counts as idle.
        wanted = max(wanted, 1) if engines else wanted
        self._wants.append((now, wanted))
        while self._wants[0][0] < now - settings.down_after_s:
            self._wants.popleft()
        if wanted > engines and now - self._grown_at < settings.up_cooldown_s:
            return engines, f"{reason}; {wanted} wait for the last change to tell (up_cooldown_s)"
        if wanted < engines:
            most = max(want for _, want in self._wants)
            since = now - max(self._grown_at, self._wants[0][0])
            if since < settings.down_after_s - settings.interval_s:
                return engines, f"{reason}; {wanted} would do, for {since:.0f} s now (down_after_s)"
            if most > wanted:
                return min(engines, most), f"{reason}; {most} were needed of late (down_after_s)"
        return wanted, reason


def _each(tokens_s: float, demand: Demand) -> str:
    return f"{tokens_s / demand.requests_s:.0f}" if demand.requests_s > 0 else "0"


def _inputs(
    signals: Signals, demand: Demand, costs: Costs | None, size: Size | None, correction: float
) -> dict[str, float]:
    """All figures of a decision by name."""
    found: dict[str, float | None] = {
        "span_s": signals.span_s,
        "arrivals": signals.arrivals,
        "pending": signals.pending,
        "pending_tokens": signals.pending_tokens,
        "in_flight": signals.in_flight,
        "concurrency": signals.concurrency,
        "ttft_s": signals.ttft_s,
        "itl_s": signals.itl_s,
        "requests_s": demand.requests_s,
        "prompt_tokens_s": demand.prompt_tokens_s,
        "output_tokens_s": demand.output_tokens_s,
        "correction": correction,
    }
    if costs is not None:
        found |= {
            "step_s": costs.step_s,
            "prompt_token_s": costs.prompt_token_s,
            "output_token_s": costs.output_token_s,
            "prefill_tps": costs.prefill_tps,
            "decode_tps": costs.decode_tps(),
        }
    if size is not None:
        found["engines_needed"] = size.engines
    return {name: float(value) for name, value in found.items() if value is not None}
