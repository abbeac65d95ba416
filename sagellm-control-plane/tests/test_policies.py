"""Orders of service, on plain values."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, strategies as st

from sagellm_control_plane.policies import TABLE, Policy, Preference, Scene, policy_named
from sagellm_protocol import SageLLMError


@dataclass(frozen=True)
class W:
    number: int
    arrived: float = 0.0
    deadline: float | None = None
    priority: int = 0
    prompt_tokens: int = 1
    cost_budget: float | None = None


def order(name: str, waiting: list[W], **scene: float | bool) -> list[int]:
    policy, seen = policy_named(name), Scene(**{"now": 10.0, **scene})  # type: ignore[arg-type]
    return [w.number for w in sorted(waiting, key=lambda w: (policy.key(w, seen), w.number))]


def test_fifo_serves_in_order_of_arrival() -> None:
    assert order("fifo", [W(2, priority=-2), W(1), W(3)]) == [1, 2, 3]


def test_priority_serves_the_more_important_first_then_the_older() -> None:
    assert order("priority", [W(1, priority=1), W(2), W(3, priority=-2), W(4)]) == [3, 2, 4, 1]


def test_urgent_requests_want_low_latency() -> None:
    policy = policy_named("priority")
    assert policy.preference(W(1, priority=-1), Scene(0)) is Preference.LATENCY
    assert policy.preference(W(1), Scene(0)) is Preference.BALANCE


def test_slo_aware_serves_by_the_share_of_time_used_up() -> None:
    half, most, none = W(1, arrived=5, deadline=15), W(2, arrived=2, deadline=12), W(0)
    assert order("slo_aware", [none, half, most]) == [2, 1, 0]
    policy = policy_named("slo_aware")
    assert policy.preference(most, Scene(10.0)) is Preference.LATENCY
    assert policy.preference(half, Scene(10.0)) is Preference.BALANCE


def test_cost_optimized_serves_by_priority_then_by_budget() -> None:
    waiting = [W(1), W(2, cost_budget=5), W(3, cost_budget=1), W(4, priority=-1)]
    assert order("cost_optimized", waiting) == [4, 3, 2, 1]
    assert policy_named("cost_optimized").preference(W(1), Scene(0)) is Preference.COST


@pytest.mark.parametrize(
    ("scene", "in_force"),
    [
        (Scene(0, mean_load=0.1, urgent_waiting=True), "priority"),
        (Scene(0, mean_load=0.9, deadlines_waiting=True), "slo_aware"),
        (Scene(0, mean_load=0.1, deadlines_waiting=True), "cost_optimized"),
        (Scene(0, mean_load=0.5), "slo_aware"),
        (Scene(0, mean_load=0.9), "slo_aware"),
    ],
)
def test_adaptive_switches_by_what_waits_and_by_load_and_says_why(scene: Scene, in_force: str) -> None:
    policy = policy_named("adaptive")
    assert f"; {in_force}:" in policy.reason(scene)
    assert policy.preference(W(1, priority=-1), scene) is policy_named(in_force).preference(W(1, priority=-1), scene)


def test_adaptive_serves_the_more_important_first_whatever_is_in_force() -> None:
    for load in (0.1, 0.5, 0.9):
        assert order("adaptive", [W(1, arrived=0, deadline=10.1), W(2, priority=-1)], mean_load=load)[0] == 2


waitings = st.builds(
    W,
    number=st.integers(0, 50),
    arrived=st.floats(0, 10),
    deadline=st.none() | st.floats(0, 20),
    priority=st.integers(-2, 2),
    cost_budget=st.none() | st.floats(0, 10),
)


@given(st.sampled_from(sorted(TABLE)), waitings, st.floats(0, 20), st.floats(0, 20))
def test_a_timeless_policy_gives_a_request_one_key_for_ever(name: str, w: W, first: float, second: float) -> None:
    policy = policy_named(name)
    if policy.timeless:
        assert policy.key(w, Scene(first, 0.1)) == policy.key(w, Scene(second, 0.9, True, True))


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_policy_of_the_table_is_one(name: str) -> None:
    assert isinstance(policy_named(name), Policy)


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    with pytest.raises(SageLLMError, match=r"made-up.*adaptive.*fifo"):
        policy_named("made-up")
