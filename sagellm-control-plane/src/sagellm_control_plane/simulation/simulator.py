"""The plane on virtual time: the live plane's own scheduler, policies and routers over engine models.

Discrete events in a heap; every decision is made by :class:`~sagellm_control_plane.scheduling.Scheduler`, as live.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sagellm_control_plane.board import Board, Rows
from sagellm_control_plane.load import Load
from sagellm_control_plane.policies import Policy, policy_named
from sagellm_control_plane.routing import Router, router_named
from sagellm_control_plane.scheduling import Scheduler
from sagellm_protocol import BlocksRemoved, BlocksStored, ErrorCode, KVEventBatch, SageLLMError

from .engine import SimEngine
from .engine_model import EngineModel
from .report import Report
from .requests import SimRequest

MEASURE_S = 1.0
"""Between two measurements of an engine's throughput, as a live plane polls it."""


@dataclass(frozen=True)
class Setup:
    """What is simulated beside the trace."""

    engines: Sequence[EngineModel]
    policy: str = "fifo"
    routing: str = "cost"
    seed: int = 0
    slack: float = 0.25
    """Share of an engine's own limit sent there on top of it, as :class:`~sagellm_control_plane.PlaneSettings` has."""
    max_queued: int | None = None
    """Requests that may wait; one more is refused. ``None``: any number."""
    ttft_slo_s: float = 2.0
    tpot_slo_s: float = 0.1

    def __post_init__(self) -> None:
        if not self.engines:
            raise SageLLMError(ErrorCode.INVALID_REQUEST, "engines must be 1 or more (got 0)", "engines")


class Simulation:
    """One run.

    Args:
        setup: What is simulated.
        policy: In place of the one that ``setup`` names.
        router: Likewise.
    """

    def __init__(self, setup: Setup, *, policy: Policy | None = None, router: Router | None = None) -> None:
        self.setup = setup
        self.engines = [SimEngine(model) for model in setup.engines]
        self.board = Board()
        self.loads: list[Load] = []
        self.now = 0.0
        self.report = Report(setup.policy, setup.routing, len(self.engines), setup.ttft_slo_s, setup.tpot_slo_s)
        self._all = np.arange(len(self.engines), dtype=np.int64)
        self._events: list[tuple[float, int, int, int]] = []
        self._epochs = [0] * len(self.engines)
        self._measured = [0.0] * len(self.engines)
        self._told = [0] * len(self.engines)
        self._pushed = 0
        self._longest = max(model.cache_tokens for model in setup.engines)
        self._shortest = min(model.cache_tokens for model in setup.engines)
        self.scheduler: Scheduler[SimRequest] = Scheduler(
            self.board,
            self,
            policy or policy_named(setup.policy),
            router or router_named(setup.routing),
            random.Random(setup.seed),
        )
        observers = self.scheduler.observers
        for number, model in enumerate(setup.engines):
            row = self.board.join(f"e{number}")
            assert row == number, "rows are given in order"
            capacity = model.max_num_seqs + int(np.ceil(model.max_num_seqs * setup.slack))
            self.board.describe(row, capacity=capacity, devices=model.devices, cache_tokens=model.cache_tokens)
            self.board.ready[row] = True
            load = Load()
            load.show_on(self.board, row)
            self.loads.append(load)
            if observers.calls("cache_changed"):
                self.engines[row].cache.touched = {}
            observers.tell("joined", row, self.board)

    # Candidates, to the scheduler.

    def rows(self, model: str) -> Rows:
        """All engines: they serve every model of the trace."""
        return self._all

    def able(self, request: SimRequest, rows: Rows) -> Rows:
        """Those whose cache holds it to the end."""
        if request.prompt_tokens + request.output_tokens <= self._shortest:
            return rows
        needed = request.prompt_tokens + request.output_tokens
        kept: Rows = rows[self.board.cache_tokens[rows] >= needed]
        return kept

    def sequences(self, request: SimRequest) -> int:
        """One."""
        return 1

    def wished(self, request: SimRequest) -> int | None:
        """None."""
        return None

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self, trace: Iterable[SimRequest], *, most_late: int | None = None) -> Report:
        """Serve a trace to its end.

        Args:
            trace: In order of arrival.
            most_late: Stop as soon as more first tokens than this are later than the objective: the rest then cannot
                change whether it is kept.
        """
        report, events = self.report, self._events
        began: float | None = None
        for request in trace:
            while events and events[0][0] <= request.arrived:
                self._event()
            if most_late is not None and report.late > most_late:
                return self._close(began)
            self.now = request.arrived
            began = request.arrived if began is None else began
            self._arrive(request)
        while events:
            self._event()
            if most_late is not None and report.late > most_late:
                break
        return self._close(began)

    def _arrive(self, request: SimRequest) -> None:
        report, scheduler, now = self.report, self.scheduler, self.now
        report.arrived += 1
        if request.prompt_tokens + request.output_tokens > self._longest:
            report.failed += 1
            return
        most = self.setup.max_queued
        if (most is not None and len(scheduler.queue) > most) or scheduler.admit(request, now) is not None:
            report.refused += 1
            return
        scheduler.enqueue(request, now)
        scheduler.round(now, self._book)
        report.longest_queue = max(report.longest_queue, len(scheduler.queue))

    def _book(self, request: SimRequest, row: int) -> None:
        now, engine = self.now, self.engines[row]
        request.placed_at = now
        self.report.waited.add(now - request.arrived)
        self.loads[row].place(1, request.prompt_tokens, now)
        sooner = engine.submit(request, now)
        if sooner or (engine.span is None and engine.plan(now)):
            self._expect(row)

    def _expect(self, row: int) -> None:
        span = self.engines[row].span
        assert span is not None
        self._epochs[row] += 1
        self._pushed += 1
        heapq.heappush(self._events, (span.ends, self._pushed, row, self._epochs[row]))

    def _event(self) -> None:
        at, _, row, epoch = heapq.heappop(self._events)
        if epoch != self._epochs[row]:
            return
        self.now = now = at
        engine, load, observers = self.engines[row], self.loads[row], self.scheduler.observers
        happened = engine.finish()
        for request in happened.began:
            load.begin(request.prompt_tokens, now - request.placed_at)
            self.report.began(request)
            observers.tell("began", request, row, now)
        if happened.tokens:
            load.produce(happened.tokens)
        if observers.calls("produced"):
            self._tell_produced(engine, row, happened.ended)
        for request in happened.ended:
            load.leave(1, request.prompt_tokens, request.output_tokens, True, now)
            self.report.ended(request, now)
            observers.tell("left", request, row, now)
        if engine.cache.touched:
            self._tell_cache(engine, row)
        if now - self._measured[row] >= MEASURE_S:
            self._measured[row] = now
            load.measure(now)
            observers.tell("measured", row, engine.work(load.produced))
        # Planned before others are let in, as a live engine does not wait for the plane between two steps.
        if engine.plan(now):
            self._expect(row)
        if happened.ended and self.scheduler.queue:
            self._expire()
            self.scheduler.round(now, self._book)

    def _tell_produced(self, engine: SimEngine, row: int, ended: Iterable[SimRequest]) -> None:
        progress = [*engine.running(), *((request, request.output_tokens) for request in ended)]
        for request, produced in progress:
            new = produced - request.told
            if new:
                request.told = produced
                self.scheduler.observers.tell("produced", request, row, new, self.now)

    def _tell_cache(self, engine: SimEngine, row: int) -> None:
        """Tell what came and went, as an engine does after a step; names of a trace are no hashes, and not checked."""
        here, gone = engine.cache.take_changes()
        removed = BlocksRemoved.model_construct(block_hashes=gone)
        stored = BlocksStored.model_construct(block_hashes=here, block_size=1)
        batch = KVEventBatch.model_construct(
            engine_id=self.board.engine_ids[row], epoch="", sequence=self._told[row], events=(removed, stored)
        )
        self._told[row] += 1
        self.scheduler.observers.tell("cache_changed", row, batch)

    def _expire(self) -> None:
        """Let go of what waits past its deadline."""
        if not self.scheduler.queue.hurried:
            return
        late = [r for r in self.scheduler.queue if r.deadline is not None and r.deadline <= self.now]
        for request in late:
            self.scheduler.drop(request, self.now)
            self.report.expired += 1

    def _close(self, began: float | None) -> Report:
        report = self.report
        report.span_s = self.now - began if began is not None else 0.0
        report.busy_s = tuple(engine.busy_s for engine in self.engines)
        report.device_s = report.span_s * sum(engine.model.devices for engine in self.engines)
        report.prompt_tokens = sum(engine.prompt_tokens for engine in self.engines)
        report.hit_tokens = sum(engine.hit_tokens for engine in self.engines)
        report.preemptions = sum(engine.preemptions for engine in self.engines)
        return report


def simulate(trace: Iterable[SimRequest], setup: Setup) -> Report:
    """Serve a trace under a setup."""
    return Simulation(setup).run(trace)
