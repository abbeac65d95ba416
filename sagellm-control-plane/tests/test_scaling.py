"""Scaling on a clock of its own: what is measured, what a load needs, and what is decided when."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings as thoroughness, strategies as st

from sagellm_control_plane.board import Role
from sagellm_control_plane.observing import EngineWork
from sagellm_control_plane.scaling import (
    Autoscaler,
    CostMeter,
    Costs,
    Decision,
    Demand,
    PoolView,
    ScalingSettings,
    SignalMeter,
    Targets,
    engines_needed,
)
from sagellm_control_plane.simulation import EngineModel, Setup, SimRequest, Simulation
from sagellm_protocol import SageLLMError
from subjects import Ask

COSTS = Costs(step_s=0.01, prompt_token_s=0.0001, output_token_s=0.001)
PROMPT, ANSWER = 1000, 50


def everything(_: object) -> bool:
    return True


class World:
    """Engines with known costs that serve an even load, second by second, and a scaler that watches."""

    def __init__(self, **settings: Any) -> None:
        self.settings = ScalingSettings(**{"predictor": "constant", **settings})
        self.scaler = Autoscaler(self.settings, everything, everything)
        self.now, self.engines, self.numbers = 0.0, 1, 0
        self.works = [EngineWork(0.0, 0, 0, 0)] * 64
        self.decisions: list[Decision] = []

    def second(self, requests: int, ttft_s: float = 0.1) -> None:
        meter = self.scaler.meter
        for _ in range(requests):
            self.numbers += 1
            ask = Ask(number=self.numbers, arrived=self.now, prompt_tokens=PROMPT)
            meter.queued(ask, self.now)
            meter.began(ask, 0, self.now + ttft_s)
            meter.left(ask, 0, self.now + ttft_s + 0.05 * ANSWER)
        for row in range(self.engines):
            self.work(row, requests / self.engines)
        self.now += 1
        self.decide()

    def work(self, row: int, requests: float) -> None:
        before = self.works[row]
        # Steps vary otherwise than tokens do, as they do where answers overlap now more and now less.
        steps = 5 + (7 * int(self.now)) % 11
        prompt, output = int(requests * PROMPT), int(requests * ANSWER)
        busy = steps * COSTS.step_s + prompt * COSTS.prompt_token_s + output * COSTS.output_token_s
        assert before.steps is not None
        work = EngineWork(
            before.busy_s + busy, before.prompt_tokens + prompt, before.output_tokens + output, before.steps + steps
        )
        self.works[row] = work
        self.scaler.meter.measured(row, work)

    def decide(self) -> None:
        decision = self.scaler.decide(PoolView(ready=self.engines), self.now)
        if decision is not None:
            self.decisions.append(decision)
            self.engines = decision.wanted

    def seconds(self, count: int, requests: int, **more: float) -> None:
        for _ in range(count):
            self.second(requests, **more)


# --- sizing -----------------------------------------------------------------------------------------------------------


def test_engines_are_reckoned_from_what_tokens_cost() -> None:
    demand = Demand(requests_s=10, prompt_tokens_s=10_000, output_tokens_s=500)
    # 1 s of prompts and 0.5 s of output a second, over 0.8 of the time less a tenth for steps.
    size = engines_needed(demand, COSTS, Targets(itl_s=0.1))
    assert size.engines == pytest.approx(1.5 / 0.7)
    assert engines_needed(demand, COSTS, Targets(itl_s=0.1), role=Role.PREFILL).engines == pytest.approx(1 / 0.8)
    assert engines_needed(demand, COSTS, Targets(itl_s=0.1), role=Role.DECODE).engines == pytest.approx(0.5 / 0.7)


def test_prompts_that_are_long_beside_the_target_leave_engines_idler() -> None:
    demand = Demand(requests_s=10, prompt_tokens_s=10_000)
    # A prompt takes 0.1 s; to be done within 0.2 s in a queue, the engine may be busy half of its time.
    assert engines_needed(demand, COSTS, Targets(ttft_s=0.2)).engines == pytest.approx(1 / 0.5)


def test_sequences_at_once_may_be_what_limits() -> None:
    size = engines_needed(Demand(1, 0, 1000), COSTS, Targets(itl_s=0.1), max_num_seqs=10)
    assert (size.engines, size.limit) == (10, "sequences at once")


def test_a_target_that_no_number_of_engines_keeps_is_told() -> None:
    size = engines_needed(Demand(1, 1000, 50), COSTS, Targets(itl_s=0.009))
    assert "no number" in size.limit
    assert size.engines == pytest.approx(0.15 / 0.1)


@given(st.floats(0, 1e4), st.floats(0, 1e6), st.floats(0, 1e5), st.floats(1.0, 3.0))
def test_more_load_never_needs_fewer_engines(rate: float, prompt: float, output: float, more: float) -> None:
    targets = Targets(ttft_s=1.0, itl_s=0.05)
    less = engines_needed(Demand(rate, prompt, output), COSTS, targets, max_num_seqs=32).engines
    assert engines_needed(Demand(rate * more, prompt * more, output * more), COSTS, targets).engines >= 0
    many = engines_needed(Demand(rate * more, prompt * more, output * more), COSTS, targets, max_num_seqs=32).engines
    assert many >= less * (1 - 1e-9)


# --- measuring --------------------------------------------------------------------------------------------------------


def spans(costs: Costs, mix: Iterator[tuple[int, int, int]], tells_steps: bool = True) -> CostMeter:
    meter, busy, totals = CostMeter(), 0.0, [0, 0, 0]
    meter.measured(0, EngineWork(0.0, 0, 0, 0 if tells_steps else None))
    for steps, prompt, output in mix:
        busy += steps * costs.step_s + prompt * costs.prompt_token_s + output * costs.output_token_s
        totals = [totals[0] + steps, totals[1] + prompt, totals[2] + output]
        meter.measured(0, EngineWork(busy, totals[1], totals[2], totals[0] if tells_steps else None))
    return meter


def test_costs_are_found_from_work_of_different_kinds() -> None:
    mix = iter([(10, 1000, 100), (20, 0, 400), (5, 3000, 10), (30, 500, 30)])
    found = spans(COSTS, mix).costs()
    assert found is not None
    assert (found.step_s, found.prompt_token_s, found.output_token_s) == pytest.approx((0.01, 0.0001, 0.001))
    assert found.prefill_tps == pytest.approx(10_000)
    assert found.decode_tps() == pytest.approx(1000)
    assert found.decode_tps(itl_s=0.1) == pytest.approx(900)


@pytest.mark.parametrize("tells_steps", [True, False])
def test_work_of_one_kind_foretells_more_of_it(tells_steps: bool) -> None:
    found = spans(COSTS, iter([(10, 1000, 100)] * 5), tells_steps).costs()
    assert found is not None
    assert found.step_s == 0
    assert 1000 * found.prompt_token_s + 100 * found.output_token_s == pytest.approx(0.3)


def test_an_engine_started_anew_is_not_taken_to_have_worked_backwards() -> None:
    meter = spans(COSTS, iter([(10, 1000, 100), (20, 0, 400), (5, 3000, 10)]))
    before = meter.costs()
    meter.measured(0, EngineWork(0.1, 5, 5, 5))
    assert meter.costs() == before
    assert CostMeter().costs() is None


def test_signals_of_a_span() -> None:
    meter = SignalMeter(lambda name: name == "m", everything)
    meter.begin(0.0)
    meter.measured(0, EngineWork(0.0, 0, 0))
    one, two, other = Ask(number=1, arrived=0.0), Ask(number=2, arrived=1.0), Ask(number=3, model="other")
    meter.queued(one, 0.0)
    meter.queued(other, 0.0)
    meter.began(one, 0, 2.0)
    meter.queued(two, 1.0 + 1.0)
    meter.measured(0, EngineWork(4.0, 10, 40))
    meter.left(one, 0, 6.0)
    signals = meter.take(10.0)
    assert (signals.arrivals, signals.prompt_tokens, signals.ended, signals.pending) == (2, 20, 1, 1)
    assert (signals.ttft_s, signals.itl_s) == (2.0, 4.0 / 40)
    assert signals.concurrency == pytest.approx((6 + 8) / 10)
    meter.dropped(two, 11.0)
    later = meter.take(15.0)
    assert (later.pending, later.idle_s, later.ttft_s, later.itl_s) == (0, 4.0, None, None)


def test_the_simulator_tells_what_the_live_plane_tells_and_its_engines_costs_are_found() -> None:
    model = EngineModel(step_s=0.01, prompt_token_s=0.0001, sequence_s=0.0005, context_token_s=0.0)
    simulation = Simulation(Setup([model, model]))
    meter = SignalMeter(everything, everything)
    simulation.scheduler.listen(meter)
    rng = random.Random(1)
    arrivals = sorted(rng.uniform(0, 60) for _ in range(600))
    simulation.run(SimRequest(n, at, rng.randint(10, 600), rng.randint(5, 60)) for n, at in enumerate(arrivals))
    signals, found = meter.take(simulation.now), meter.costs.costs()
    assert (signals.arrivals, signals.ended, signals.in_flight) == (600, 600, 0)
    assert found is not None
    assert (found.step_s, found.prompt_token_s) == pytest.approx((0.01, 0.0001), rel=0.25)


# --- deciding ---------------------------------------------------------------------------------------------------------


def test_engines_come_with_load_and_go_without_it() -> None:
    world = World(max_engines=8, down_after_s=60, up_cooldown_s=0, max_growth=8)
    world.seconds(20, 4)
    assert world.engines == 1
    world.seconds(20, 20)
    # 2 s of prompts and 1 s of output a second, over 0.8 - 0.1.
    assert world.engines == 5
    assert "need 4.29 engines (by time between tokens)" in world.decisions[-1].reason
    world.seconds(50, 4)
    assert world.engines == 5
    assert "down_after_s" in world.decisions[-1].reason
    world.seconds(40, 4)
    assert world.engines == 2
    assert world.decisions[-1].inputs["requests_s"] == 4


def test_engines_are_added_no_faster_than_is_allowed() -> None:
    world = World(max_engines=32, up_cooldown_s=25, max_growth=2)
    world.seconds(20, 4)
    seen = []
    for _ in range(9):
        world.seconds(10, 100)
        seen.append(world.engines)
    assert seen == [2, 2, 2, 4, 4, 4, 8, 8, 8]
    assert any("up_cooldown_s" in decision.reason for decision in world.decisions)


def test_the_limits_hold_and_are_told() -> None:
    world = World(min_engines=2, max_engines=3, up_cooldown_s=0)
    world.second(1)
    assert world.engines == 2
    world.seconds(40, 100)
    assert world.engines == 3
    assert "max_engines allows 3" in world.decisions[-1].reason


def test_the_last_engine_goes_when_nobody_asks_and_one_comes_at_once_when_somebody_does() -> None:
    world = World(min_engines=0, idle_to_zero_s=30, down_after_s=20)
    world.seconds(20, 2)
    world.seconds(25, 0)
    assert world.engines == 1
    world.seconds(20, 0)
    assert world.engines == 0
    assert "idle_to_zero_s" in world.decisions[-1].reason
    world.seconds(60, 0)
    assert world.engines == 0
    world.scaler.meter.queued(Ask(number=10**6, arrived=world.now), world.now)
    world.decide()
    assert world.engines == 1
    assert "1 requests wait and no engine is there" in world.decisions[-1].reason


def test_a_missed_target_adds_an_engine_and_is_remembered() -> None:
    world = World(ttft_s=1.0, max_engines=8, down_after_s=30, up_cooldown_s=0)
    world.seconds(30, 2)
    assert world.engines == 1
    world.seconds(10, 2, ttft_s=3.0)
    assert world.engines == 2
    assert "first token takes 3.00 s" in world.decisions[-1].reason
    # It goes well with two: the model alone would take one away again.
    world.seconds(120, 2)
    assert world.engines == 2
    assert world.decisions[-1].inputs["correction"] > 1


def test_engines_are_not_added_for_requests_that_have_one_each() -> None:
    world = World(ttft_s=0.01, max_engines=8, up_cooldown_s=0)
    for _ in range(10):
        world.second(1, ttft_s=0.5)
        world.seconds(4, 0)
    assert world.engines == 1


@thoroughness(max_examples=15, deadline=None)
@given(st.integers(6, 40), st.lists(st.floats(0, 1), min_size=10, max_size=30))
def test_load_that_varies_within_the_hysteresis_sends_no_engine_away(most: int, dips: list[float]) -> None:
    world = World(max_engines=60, hysteresis=0.25, down_after_s=0, up_cooldown_s=0, max_growth=60)
    world.seconds(30, most)
    settled = world.engines
    assert settled > 1
    least = -(-most * 100 // 125)
    for dip in dips:
        world.seconds(10, round(most - dip * (most - least)))
        # Rounding may add one at the very edge; what was added stays.
        assert settled <= world.engines <= settled + 1, world.decisions[-1].reason
        settled = world.engines
        assert not any(decision.change < 0 for decision in world.decisions[3:])


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0.01, 5)), min_size=1, max_size=20))
@thoroughness(max_examples=40, deadline=None)
def test_whatever_happens_the_number_stays_within_its_limits_and_is_explained(load: list[tuple[int, float]]) -> None:
    world = World(min_engines=0, max_engines=5, down_after_s=10, idle_to_zero_s=20)
    for requests, ttft_s in load:
        world.seconds(10, requests, ttft_s=ttft_s)
        assert 0 <= world.engines <= 5
    assert all(decision.reason for decision in world.decisions)


def test_settings_out_of_range_are_refused_by_name() -> None:
    for wrong, name in (
        ({"min_engines": -1}, "min_engines"),
        ({"min_engines": 5, "max_engines": 4}, "max_engines"),
        ({"utilisation": 1.5}, "utilisation"),
        ({"predictor": "prophet"}, "predictor"),
        ({"max_growth": 0.5}, "max_growth"),
    ):
        with pytest.raises(SageLLMError) as refused:
            ScalingSettings(**wrong)
        assert refused.value.param == name
