"""The simulator against what can be reckoned by hand, and against itself."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from sagellm_control_plane.policies import TABLE as POLICIES
from sagellm_control_plane.routing import TABLE as ROUTERS
from sagellm_control_plane.settings import PlaneSettings
from sagellm_control_plane.simulation import (
    EngineModel,
    Report,
    Setup,
    SimRequest,
    Simulation,
    StepSample,
    fit,
    generate,
    read_trace,
    scaled,
    simulate,
    workload_named,
)
from sagellm_control_plane.simulation.cache import BlockCache
from sagellm_control_plane.simulation.capacity import as_if_shared, bound, capacity
from sagellm_control_plane.simulation.engine import SimEngine
from sagellm_control_plane.simulation.sketch import Sketch
from sagellm_control_plane.simulation.study import source_of
from sagellm_protocol import SageLLMError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "traces"
PLAIN = EngineModel(step_s=0.01, prompt_token_s=0.001, sequence_s=0.0, context_token_s=0.0, token_budget=100)


def alone(request: SimRequest, model: EngineModel = PLAIN) -> Report:
    return simulate([request], Setup([model]))


def test_one_request_takes_what_its_steps_take() -> None:
    # 250 prompt tokens in chunks of 100, 100 and 50, then 9 steps for the tokens after the first.
    report = alone(SimRequest(0, 5.0, 250, 10))
    assert report.ttft.mean == pytest.approx(3 * 0.01 + 250 * 0.001)
    assert report.tpot.mean == pytest.approx(0.01)
    assert report.latency.mean == pytest.approx(12 * 0.01 + 0.25)
    assert report.busy_s[0] == pytest.approx(report.span_s)


def test_a_decode_step_takes_longer_as_its_context_grows() -> None:
    model = EngineModel(step_s=0.01, prompt_token_s=0.0, sequence_s=0.002, context_token_s=1e-4, token_budget=1000)
    report = alone(SimRequest(0, 0.0, 100, 4), model)
    # The second, third and fourth token read contexts of 101, 102 and 103 tokens.
    assert report.latency.mean == pytest.approx(0.01 + 3 * 0.012 + (101 + 102 + 103) * 1e-4)


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 100_000))
def test_steps_in_closed_form_are_their_sum_and_can_be_inverted(steps: int, sequences: int, context: int) -> None:
    model = EngineModel()
    one_by_one = sum(model.steps_s(1, sequences, context + sequences * step) for step in range(steps))
    together = model.steps_s(steps, sequences, context)
    assert together == pytest.approx(one_by_one)
    assert model.steps_within(together * (1 + 1e-9), sequences, context) == steps
    assert model.steps_within(together * (1 - 1e-6), sequences, context) == steps - 1


def test_a_request_that_comes_between_two_steps_waits_for_the_present_one_only() -> None:
    long, late = SimRequest(0, 0.0, 100, 1000), SimRequest(1, 1.0005, 50, 1)
    report = simulate([long, late], Setup([PLAIN], routing="least_load"))
    # Steps of 10 ms since 0.11 s: the next begins at 1.01 s, and computes 50 tokens.
    assert late.first_at == pytest.approx(1.01 + 0.01 + 0.05)
    assert report.completed == 2


def test_the_wait_for_one_engine_is_that_of_an_m_d_1_queue() -> None:
    service, load, rng = 0.1, 0.7, random.Random(7)
    model = EngineModel(step_s=0.0, prompt_token_s=0.001, sequence_s=0.0, context_token_s=0.0, token_budget=100)

    def poisson() -> Iterator[SimRequest]:
        now = 0.0
        for number in range(30_000):
            now += rng.expovariate(load / service)
            yield SimRequest(number, now, 100, 1)

    report = simulate(poisson(), Setup([model]))
    assert report.ttft.mean is not None
    assert report.ttft.mean - service == pytest.approx(load * service / (2 * (1 - load)), rel=0.05)


def test_a_prefix_is_computed_once_and_evicted_oldest_first() -> None:
    first, again = SimRequest(0, 0.0, 120, 1, (1, 2), 50), SimRequest(1, 10.0, 120, 1, (1, 2), 50)
    report = simulate([first, again], Setup([PLAIN]))
    assert again.cached == 100
    assert report.hit_rate == pytest.approx(100 / 240)
    tight = EngineModel(step_s=0.01, prompt_token_s=0.001, cache_tokens=220, token_budget=100)
    other = SimRequest(1, 10.0, 150, 1, (7, 8, 9), 50)
    simulate(
        [SimRequest(0, 0.0, 120, 1, (1, 2), 50), other, last := SimRequest(2, 20.0, 120, 1, (1, 2), 50)], Setup([tight])
    )
    # The end of the older prefix went first.
    assert last.cached == 50


def test_a_whole_prompt_from_the_cache_still_computes_a_token() -> None:
    simulate([SimRequest(0, 0.0, 100, 1, (1, 2), 50), again := SimRequest(1, 9.0, 100, 1, (1, 2), 50)], Setup([PLAIN]))
    assert again.cached == 99


def test_what_does_not_fit_is_put_off_and_computed_again() -> None:
    model = EngineModel(step_s=0.01, prompt_token_s=0.001, cache_tokens=300, token_budget=100, max_num_seqs=8)
    requests = [SimRequest(number, 0.0, 60, 100) for number in range(4)]
    report = simulate(requests, Setup([model]))
    assert report.preemptions > 0
    assert report.completed == 4
    assert report.output_tokens == 400


def test_what_no_engine_could_ever_hold_fails_alone() -> None:
    model = EngineModel(cache_tokens=1000)
    report = simulate([SimRequest(0, 0.0, 990, 11), SimRequest(1, 0.0, 100, 2)], Setup([model]))
    assert (report.failed, report.completed) == (1, 1)


requests = st.builds(
    lambda gap, prompt, output, blocks, user, priority, patience, embeds: (
        gap,
        prompt,
        output,
        blocks,
        user,
        priority,
        patience,
        embeds,
    ),
    st.sampled_from([0.0, 0.01, 0.5]),
    st.integers(1, 300),
    st.integers(1, 60),
    st.integers(0, 5),
    st.none() | st.sampled_from("uvw"),
    st.integers(-2, 2),
    st.none() | st.floats(0.01, 5),
    st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(requests, max_size=40),
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from(sorted(ROUTERS)),
    st.integers(1, 3),
    st.none() | st.integers(0, 5),
)
def test_every_request_ends_once_and_nothing_is_left_behind(
    drawn: list[tuple[float, int, int, int, str | None, int, float | None, bool]],
    policy: str,
    routing: str,
    engines: int,
    most: int | None,
) -> None:
    def trace() -> Iterator[SimRequest]:
        now = 0.0
        for number, (gap, prompt, output, blocks, user, priority, patience, embeds) in enumerate(drawn):
            now += gap
            hashes = tuple(range(min(blocks, prompt // 16)))
            late = None if patience is None else now + patience
            yield SimRequest(
                number, now, prompt, output, hashes, 16, user=user, priority=priority, deadline=late, embeds=embeds
            )

    model = EngineModel(step_s=0.01, cache_tokens=400, token_budget=64, max_num_seqs=3)
    setup = Setup([model] * engines, policy=policy, routing=routing, slack=0.0, max_queued=most)
    simulation = Simulation(setup)
    report = simulation.run(trace())
    assert report.completed + report.refused + report.expired + report.failed == report.arrived == len(drawn)
    assert len(simulation.scheduler.queue) == 0
    for engine, load in zip(simulation.engines, simulation.loads, strict=True):
        assert (load.sequences, load.queued_tokens, load.held_tokens) == (0, 0, 0)
        cache = engine.cache
        assert (cache.private_tokens, cache.shared_tokens, engine.sequences) == (0, 0, 0)
        assert 0 <= cache.cached_tokens <= cache.total_tokens
        assert cache.cached_tokens == sum(cache._idle.values())
        assert engine._context == 0
    again = Simulation(setup).run(trace())
    assert again.figures() == report.figures()


def test_a_cache_counts_a_block_once_however_many_use_it() -> None:
    cache = BlockCache(1000)
    cache.take((1, 2), 100, 10)
    cache.take((1, 3), 100, 5)
    assert (cache.shared_tokens, cache.private_tokens, cache.free_tokens) == (300, 15, 685)
    cache.give_back((1, 2), 100, 10)
    assert (cache.shared_tokens, cache.cached_tokens) == (200, 100)
    assert cache.matched((1, 2, 9)) == 2


def test_an_engine_takes_no_more_sequences_than_it_runs() -> None:
    engine = SimEngine(EngineModel(max_num_seqs=2))
    for number in range(4):
        engine.submit(SimRequest(number, 0.0, 10, 50), 0.0)
    engine.plan(0.0)
    assert engine.span is not None
    engine.finish()
    assert len(engine.running()) == 2
    assert engine.sequences == 4


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=300), st.floats(0, 1))
def test_a_sketch_is_within_its_error(values: list[float], share: float) -> None:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    rank = max(1, -(-share * len(values) // 1))
    assert sketch.quantile(share) == pytest.approx(sorted(values)[int(rank) - 1], rel=0.006)


def test_a_fit_finds_the_engine_that_was_measured() -> None:
    truth, rng = EngineModel(), random.Random(3)
    samples = []
    for _ in range(60):
        prompt, sequences, context = rng.choice([0, 0, 512, 2048]), rng.randint(0, 64), rng.randint(0, 200_000)
        seconds = truth.steps_s(1, sequences, context, prompt) * rng.uniform(0.98, 1.02)
        samples.append(StepSample(prompt, sequences, context, seconds))
    found = fit(samples)
    for name in ("step_s", "prompt_token_s", "context_token_s"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.15)
    with pytest.raises(SageLLMError, match="needs 4"):
        fit(samples[:3])


def test_a_fit_has_no_negative_times() -> None:
    samples = [StepSample(p, s, 0, 0.01 + 1e-5 * p - 1e-6 * s) for p in (0, 100, 1000) for s in (1, 50)]
    assert fit(samples).sequence_s == 0.0


def test_capacity_is_where_the_service_level_is_lost() -> None:
    def trace() -> Iterator[SimRequest]:
        return (SimRequest(number, number * 1.0, 1000, 1) for number in range(200))

    model = EngineModel(step_s=0.0, prompt_token_s=1e-4, sequence_s=0.0, context_token_s=0.0, token_budget=1000)
    # A tenth of a second each: ten a second are served, and 200 requests take a while to be two seconds late.
    speed, report = capacity(trace, Setup([model], routing="least_queued"), 200)
    assert report is not None
    assert 10 < speed < 12
    assert report.ttft.quantile(0.9) == pytest.approx(2.0, rel=0.1)


def test_an_infinite_shared_cache_bounds_what_routing_reaches() -> None:
    def trace() -> Iterator[SimRequest]:
        return generate(workload_named("mooncake_conv", requests=300, rate_rps=1.0))

    setup = Setup([EngineModel()] * 2, routing="cost")
    reached, _ = capacity(trace, setup, 300)
    most, _ = bound(trace, setup, 300)
    assert 0 < reached <= most * 1.02
    once, twice = (SimRequest(number, 0.0, 130, 1, (1, 2), 50) for number in range(2))
    assert [request.prompt_tokens for request in as_if_shared([once, twice])] == [130, 30]


def test_azure_traces_are_read_packed_or_not(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,3,1\n"
    )
    plain, packed = tmp_path / "t.csv", tmp_path / "t.csv.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed):
        first, second = read_trace(path)
        assert (first.arrived, first.prompt_tokens, first.output_tokens) == (0.0, 374, 44)
        assert second.arrived == pytest.approx(4.314579)


def test_mooncake_traces_keep_full_blocks_and_spread_what_was_rounded(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    line = '{"timestamp": %d, "input_length": 1100, "output_length": 5, "hash_ids": [4, 5, 6]}\n'
    path.write_text("".join(line % stamp for stamp in (0, 0, 0, 3000, 3000)))
    read = list(read_trace(path))
    assert read[0].block_hashes == (4, 5)
    times = [request.arrived for request in read]
    assert times == sorted(times)
    assert len(set(times)) == 5
    path.write_text("".join(line % stamp for stamp in (0, 0, 40)))
    assert [request.arrived for request in read_trace(path)] == [0.0, 0.0, 0.04]


@pytest.mark.parametrize(("name", "text"), [("t.csv", "a,b\n1,2\n"), ("t.jsonl", "{}\n"), ("t.jsonl", "no\n")])
def test_a_file_that_is_no_trace_is_refused_by_name(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SageLLMError, match=name):
        list(read_trace(tmp_path / name))
    with pytest.raises(SageLLMError, match="nowhere"):
        list(read_trace(tmp_path / f"nowhere-{name}"))


def test_a_scaled_trace_keeps_its_patience() -> None:
    [request] = scaled([SimRequest(0, 10.0, 1, 1, deadline=13.0)], 2.0)
    assert (request.arrived, request.deadline) == (5.0, 8.0)


def test_made_up_work_has_the_published_figures() -> None:
    workload = workload_named("azure_conv", requests=20_000)
    made = list(generate(workload))
    assert made[-1].arrived == pytest.approx(20_000 / 5.53, rel=0.1)
    assert sum(request.prompt_tokens for request in made) / len(made) == pytest.approx(1230, rel=0.1)
    heavy = sum(int(str(request.user)[1:]) < 10 for request in made) / len(made)
    assert heavy == pytest.approx(0.9, abs=0.05)
    assert [request.arrived for request in made] == sorted(request.arrived for request in made)
    again = generate(workload)
    assert [(r.arrived, r.prompt_tokens) for r in again] == [(r.arrived, r.prompt_tokens) for r in made]


@pytest.mark.skipif(not SHARED.exists(), reason="the public traces are not here")
def test_the_public_traces_are_what_was_published() -> None:
    conversation = list(read_trace(SHARED / "azure_conv_2023.csv.gz"))
    assert len(conversation) == 19_366
    assert len(conversation) / conversation[-1].arrived == pytest.approx(5.53, abs=0.02)
    mooncake = list(read_trace(SHARED / "mooncake_conversation.jsonl.gz"))
    before = sum(request.prompt_tokens for request in mooncake)
    left = sum(request.prompt_tokens for request in as_if_shared(mooncake))
    assert len(mooncake) == 12_031
    assert 1 - left / before == pytest.approx(0.366, abs=0.03)


def test_a_setup_without_engines_is_refused() -> None:
    with pytest.raises(SageLLMError, match="engines must be 1 or more"):
        Setup([])


def test_routing_by_events_sees_what_caches_hold_also_where_guesses_would_be_wrong() -> None:
    model = EngineModel(cache_tokens=400_000)
    setup = Setup([model] * 4, routing="prefix_events")
    simulation = Simulation(setup)
    report = simulation.run(generate(workload_named("mooncake_conv", requests=400, rate_rps=2.0)))
    assert report.completed + report.failed == 400
    assert report.hit_rate is not None
    random_report = simulate(
        generate(workload_named("mooncake_conv", requests=400, rate_rps=2.0)), Setup([model] * 4, routing="random")
    )
    assert random_report.hit_rate is not None
    assert report.hit_rate > 1.5 * random_report.hit_rate
    told = vars(simulation.scheduler.router)["_told"]
    for row, engine in enumerate(simulation.engines):
        assert set(vars(told)["_held"][row]) == {*engine.cache._used, *engine.cache._idle}


@pytest.mark.skipif(not SHARED.exists(), reason="the public traces are not here")
def test_the_default_holds_a_rate_that_baselines_lose_on_a_trace_with_prefixes() -> None:
    source = source_of(str(SHARED / "mooncake_conversation.jsonl.gz"), rate_rps=12.5, keep=True)
    late = int(0.1 * source.requests)

    def kept(routing: str) -> bool:
        report = Simulation(Setup([EngineModel()] * 8, routing=routing)).run(source.make(), most_late=late)
        return report.late <= late

    assert [kept(routing) for routing in (PlaneSettings().routing, "least_queued", "round_robin")] == [
        True,
        False,
        False,
    ]
