"""Models whose number of engines follows the load: carries out what :mod:`.scaling` decides, through the crew.

A model may be without engines; requests for it then wait, bounded in number and time, while one is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from sagellm_protocol import EngineSpec, EngineState, ErrorCode, ModelInfo, SageLLMError, ScalingStatus

from .background import Background
from .crew import Crew
from .dispatch import Dispatcher
from .fleet import Fleet, Launched, Member
from .scaling import PREDICTORS, Autoscaler, Decision, PoolView, ScalingSettings
from .scaling.predictors.fitted import Fitted

log = logging.getLogger(__name__)
MOST_BACKOFF_S = 60.0
LEAST_TICK_S = 0.01


@dataclass(eq=False)
class Pool:
    """A model, what its engines are made of, and what decides how many there are."""

    spec: EngineSpec
    launcher: str
    settings: ScalingSettings
    scaler: Autoscaler
    poke: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when somebody waits for the first engine, or an engine was lost."""
    failures: int = 0
    """Engines in a row that did not start."""
    failure: str | None = None
    """Why the last of them did not."""
    retry_at: float = -math.inf
    """When another may be tried."""
    empty_since: float | None = None
    """Since when requests have waited with no engine ready."""
    since_s: int = field(default_factory=lambda: int(time.time()))
    task: asyncio.Task[None] | None = None


class Elastic:
    """The elastic models of one plane.

    Args:
        fleet: The engines; asks here whether one is to be expected.
        dispatcher: Tells what happens.
        crew: Starts and stops them.
        background: Keeps the tasks.
        clock: Monotonic seconds.
    """

    def __init__(
        self, fleet: Fleet, dispatcher: Dispatcher, crew: Crew, background: Background, clock: Callable[[], float]
    ) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._crew = crew
        self._background = background
        self._clock = clock
        self._pools: list[Pool] = []
        fleet.reserve = self

    # --- what an operator asks for ------------------------------------------------------------------------------------

    def add(self, spec: EngineSpec, launcher: str, settings: ScalingSettings) -> None:
        """Let a model's engines follow the load; those it is to have at least are started at once.

        Raises:
            SageLLMError: ``CONFLICT`` when one of its names is elastic already.
        """
        taken = [name for name in spec.names if self._pool(name) is not None]
        if taken:
            raise SageLLMError(ErrorCode.CONFLICT, f"model {taken[0]!r} is scaled already; end that first", "model")
        names = frozenset(spec.names)
        scaler = Autoscaler(settings, names.__contains__, lambda row: bool(names & set(self._fleet.at(row).names)))
        pool = Pool(spec, launcher, settings, scaler)
        self._pools.append(pool)
        self._dispatcher.scheduler.listen(scaler.meter)
        pool.task = self._background.spawn(self._keep(pool), f"scale {spec.names[0]}")

    def remove(self, model: str) -> None:
        """Let a model's engines be as many as there are, from now on.

        Raises:
            SageLLMError: ``NOT_FOUND`` for a model that is not elastic.
        """
        pool = self._pool(model)
        if pool is None:
            known = ", ".join(one.spec.names[0] for one in self._pools) or "none"
            raise SageLLMError(ErrorCode.NOT_FOUND, f"model {model!r} is not scaled; there are: {known}", "model")
        self._end(pool)
        self._dispatcher.fleet_changed()

    def close(self) -> None:
        """Scale nothing any more."""
        for pool in tuple(self._pools):
            self._end(pool)

    def _end(self, pool: Pool) -> None:
        self._pools.remove(pool)
        self._dispatcher.scheduler.unlisten(pool.scaler.meter)
        if pool.task is not None:
            pool.task.cancel()

    def scales(self, names: Collection[str]) -> bool:
        """Whether any of the names is of an elastic model."""
        return any(self._pool(name) is not None for name in names)

    def status(self) -> tuple[ScalingStatus, ...]:
        """The elastic models, and the last decision on each."""
        return tuple(_status(pool, self._view(pool)) for pool in self._pools)

    def models(self) -> list[ModelInfo]:
        """Models that have no engine now, and get one when they are asked for."""
        return [
            ModelInfo(name=name, engines=0, ready=0, created_s=pool.since_s)
            for pool in self._pools
            for name in pool.spec.names
            if not self._fleet.serving(name) and self.promises(name)
        ]

    # --- what the plane asks: Reserve, to the fleet -------------------------------------------------------------------

    def promises(self, model: str) -> bool:
        """Whether a model without a ready engine is to get one before long."""
        pool = self._pool(model)
        if pool is None or self._clock() < pool.retry_at:
            return False
        return not any(member.ready for member in self._fleet.serving(model))

    def refusal(self, model: str) -> SageLLMError | None:
        """Why a model that is elastic has no engine and is to get none at once."""
        pool = self._pool(model)
        if pool is None or pool.failure is None or self._fleet.serving(model):
            return None
        wait = max(1.0, pool.retry_at - self._clock())
        return SageLLMError(
            ErrorCode.UNAVAILABLE, f"no engine of {model!r} could be started: {pool.failure}", retry_after_s=wait
        )

    def admit(self, model: str) -> bool:
        """Take one more in to wait for the first engine of a model, and see to it that there will be one.

        Returns:
            Whether the model is elastic and has none ready.

        Raises:
            SageLLMError: ``QUEUE_FULL`` when as many wait as may.
        """
        pool = self._pool(model)
        if pool is None or not self.promises(model):
            return False
        pending, most = pool.scaler.meter.pending, pool.settings.max_waiting
        if pending >= most:
            raise SageLLMError(
                ErrorCode.QUEUE_FULL,
                f"{pending} requests wait for an engine of {model!r} to start, the most that may (max_waiting={most})",
                retry_after_s=1.0,
            )
        # The request itself is queued before the loop gets round to the pool.
        pool.poke.set()
        return True

    # --- what is done -------------------------------------------------------------------------------------------------

    async def _keep(self, pool: Pool) -> None:
        while True:
            pool.poke.clear()
            self._tidy(pool)
            decision = await self._decide(pool)
            if decision is not None:
                self._carry_out(pool, decision)
            rest = pool.settings.interval_s - pool.scaler.meter.span_s(self._clock())
            waits = pool.scaler.meter.pending and not self._view(pool).ready
            pause = min(rest, pool.settings.start_timeout_s / 10, 0.5) if waits else rest
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(pool.poke.wait(), max(pause, LEAST_TICK_S))

    async def _decide(self, pool: Pool) -> Decision | None:
        scaler, now = pool.scaler, self._clock()
        urgent = scaler.at_once(self._view(pool), now)
        if urgent is not None:
            return urgent
        signals = scaler.observe(now)
        if signals is None:
            return None
        slow = issubclass(PREDICTORS[pool.settings.predictor], Fitted)
        demand = await asyncio.to_thread(scaler.foresee, signals) if slow else scaler.foresee(signals)
        return scaler.conclude(self._view(pool), signals, demand, self._clock())

    def _carry_out(self, pool: Pool, decision: Decision) -> None:
        model, change = pool.spec.names[0], decision.change
        if not change:
            log.debug("model %s keeps %d engines: %s", model, decision.engines, decision.reason)
            return
        if change > 0 and self._clock() < pool.retry_at:
            return
        log.info("model %s: %d engines become %d: %s", model, decision.engines, decision.wanted, decision.reason)
        for _ in range(change):
            name = f"{pool.spec.engine}-{uuid.uuid4().hex[:8]}"
            self._crew.expect(Member(name, Launched(pool.launcher, pool.spec), pool.spec.names))
        for member in self._superfluous(pool)[: max(0, -change)]:
            self._background.spawn(self._send_away(member), f"scale away {member.engine_id}")

    async def _send_away(self, member: Member) -> None:
        """Let an engine finish what it has, and stop it."""
        with contextlib.suppress(SageLLMError):
            # Another may have stopped it meanwhile.
            if member.state is EngineState.READY:
                await self._crew.drain(member.engine_id)
            await self._crew.stop(member.engine_id)

    def _tidy(self, pool: Pool) -> None:
        """Let go of engines that are beyond hope; give up on those who waited for one too long."""
        now = self._clock()
        view = self._view(pool)
        for member in self._own(pool):
            if member.state is EngineState.ERROR and not member.hopeful:
                pool.failure = member.error or "it did not start"
                backoff = min(MOST_BACKOFF_S, 2.0**pool.failures)
                pool.failures, pool.retry_at = pool.failures + 1, now + backoff
                log.warning("model %s: engine %s is given up: %s", member.names[0], member.engine_id, pool.failure)
                leaving = self._crew.leave(member.engine_id)
                self._background.spawn(leaving, f"clear out {member.engine_id}")
        if view.ready:
            pool.failures, pool.failure, pool.empty_since = 0, None, None
        elif not pool.scaler.meter.pending:
            pool.empty_since = None
        elif pool.empty_since is None:
            pool.empty_since = now
        elif now - pool.empty_since > pool.settings.start_timeout_s:
            self._give_up(pool, now)

    def _give_up(self, pool: Pool, now: float) -> None:
        limit = pool.settings.start_timeout_s
        pool.failure, pool.empty_since = pool.failure or f"none was ready within {limit:g} s (start_timeout_s)", None
        pool.retry_at = max(pool.retry_at, now + 1.0)
        for member in self._own(pool):
            if not member.ready:
                self._background.spawn(self._crew.leave(member.engine_id), f"clear out {member.engine_id}")
        self._dispatcher.fleet_changed()

    # --- what there is ------------------------------------------------------------------------------------------------

    def _pool(self, model: str) -> Pool | None:
        return next((pool for pool in self._pools if model in pool.spec.names), None)

    def _view(self, pool: Pool) -> PoolView:
        members = {m.engine_id: m for name in pool.spec.names for m in self._fleet.serving(name)}.values()
        told = [limit for member in members if (limit := member.capabilities.max_num_seqs) is not None]
        ready = sum(member.state is EngineState.READY for member in members)
        starting = sum(m.restarting or m.state is EngineState.STARTING for m in members)
        return PoolView(ready, starting, min(told, default=None))

    def _own(self, pool: Pool) -> list[Member]:
        """Engines that were started for it here, and that may therefore be stopped."""
        names = set(pool.spec.names)
        return [m for m in self._fleet if isinstance(m.origin, Launched) and names & set(m.names)]

    def _superfluous(self, pool: Pool) -> list[Member]:
        """Those that can go, in the order in which they go: not yet started, then with the least to do, then newest."""
        able = [m for m in self._own(pool) if m.state in (EngineState.STARTING, EngineState.READY)]
        newest_first = list(reversed(able))
        return sorted(newest_first, key=lambda m: (m.state is EngineState.READY, len(m.tickets)))


def _status(pool: Pool, view: PoolView) -> ScalingStatus:
    last = pool.scaler.last
    return ScalingStatus(
        model=pool.spec.names[0],
        ready=view.ready,
        starting=view.starting,
        wanted=last.wanted if last is not None else view.engines,
        min_engines=pool.settings.min_engines,
        max_engines=pool.settings.max_engines,
        reason=pool.failure or (last.reason if last is not None else "nothing was decided yet"),
        inputs=dict(last.inputs) if last is not None else {},
    )
