"""Choices of an engine, on plain values."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from sagellm_control_plane.routing import TABLE, Router, router_named
from sagellm_protocol import SageLLMError


@dataclass
class Engine:
    engine_id: str
    sequences: int = 0
    capacity: int = 100
    queued_tokens: int = 0
    held_tokens: int = 0
    foreign_tokens: int = 0
    latency_s: float | None = None
    throughput_tps: float | None = None
    devices: int = 1


@dataclass(frozen=True)
class R:
    prompt_tokens: int = 10
    user: str | None = None
    session_id: str | None = None


def engines(n: int = 4) -> list[Engine]:
    return [Engine(f"e{i}") for i in range(n)]


def choose(name: str, among: list[Engine], request: R = R(), seed: int = 0) -> str:
    return router_named(name).choose(request, among, 0.0, random.Random(seed)).engine_id


def test_least_load_counts_tokens_rather_than_requests() -> None:
    many_small, one_large = Engine("small", sequences=5, queued_tokens=50), Engine("large", 1, queued_tokens=4000)
    assert choose("least_load", [one_large, many_small]) == "small"


@pytest.mark.parametrize("field", ["queued_tokens", "held_tokens", "foreign_tokens"])
def test_least_load_sees_work_queued_held_and_of_others(field: str) -> None:
    busy, idle = Engine("busy", **{field: 100}), Engine("idle", queued_tokens=99)  # type: ignore[arg-type]
    assert choose("least_load", [busy, idle]) == "idle"


def test_least_load_spreads_a_burst_when_each_choice_is_booked() -> None:
    among, rng, router = engines(), random.Random(1), router_named("least_load")
    for _ in range(40):
        chosen = router.choose(R(), among, 0.0, rng)
        chosen.sequences, chosen.queued_tokens = chosen.sequences + 1, chosen.queued_tokens + 10
    assert {engine.sequences for engine in among} == {10}


def test_ties_are_drawn_rather_than_given_to_the_first() -> None:
    assert len({choose("least_load", engines(), seed=seed) for seed in range(50)}) == 4


def test_round_robin_takes_turns_also_when_an_engine_is_full_for_a_while() -> None:
    among, router, rng = engines(3), router_named("round_robin"), random.Random(0)
    took = [router.choose(R(), among, 0.0, rng).engine_id for _ in range(3)]
    assert took == ["e0", "e1", "e2"]
    assert router.choose(R(), among[1:], 0.0, rng).engine_id == "e1"
    assert router.choose(R(), among, 0.0, rng).engine_id == "e0"
    assert router.choose(R(), among, 0.0, rng).engine_id == "e2"


def test_round_robin_forgets_engines_that_are_gone() -> None:
    router, rng = router_named("round_robin"), random.Random(0)
    for i in range(10_000):
        router.choose(R(), [Engine(f"e{i}")], 0.0, rng)
    assert len(vars(router)["_chosen"]) <= 4096


def test_power_of_two_avoids_the_loaded_of_the_pair() -> None:
    among = [*engines(7), Engine("hot", queued_tokens=10**6)]
    assert "hot" not in {choose("power_of_two", among, seed=seed) for seed in range(200)}


def test_random_draws_from_all() -> None:
    counts = Counter(choose("random", engines(), seed=seed) for seed in range(400))
    assert min(counts.values()) > 50


def test_affinity_keeps_a_user_in_place_while_engines_come_and_go() -> None:
    among = engines(5)
    home = {f"u{i}": choose("affinity", among, R(user=f"u{i}")) for i in range(100)}
    assert len(set(home.values())) == 5
    fewer = [engine for engine in among if engine.engine_id != "e2"]
    for user, engine in home.items():
        moved = choose("affinity", fewer, R(user=user))
        assert moved == engine or engine == "e2"


def test_affinity_without_a_user_goes_by_load() -> None:
    assert choose("affinity", [Engine("busy", queued_tokens=9), Engine("idle")]) == "idle"


def test_lowest_latency_prefers_the_fast_and_tries_the_unmeasured() -> None:
    slow, fast = Engine("slow", latency_s=0.9), Engine("fast", latency_s=0.1)
    assert choose("lowest_latency", [slow, fast]) == "fast"
    assert choose("lowest_latency", [slow, fast, Engine("new")]) == "new"


def test_cheapest_prices_a_token_in_device_seconds() -> None:
    big, small = Engine("big", devices=4, throughput_tps=200.0), Engine("small", devices=1, throughput_tps=60.0)
    assert choose("cheapest", [big, small]) == "small"
    assert choose("cheapest", [Engine("big", devices=4), Engine("small", devices=1, throughput_tps=1.0)]) == "small"


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_router_takes_the_only_engine(name: str) -> None:
    assert isinstance(router_named(name), Router)
    assert choose(name, engines(1)) == "e0"


def test_an_unknown_router_is_refused_with_those_there_are() -> None:
    with pytest.raises(SageLLMError, match=r"made-up.*least_load.*round_robin"):
        router_named("made-up")
