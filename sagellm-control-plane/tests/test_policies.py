"""Orders of service, on plain values."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings, strategies as st

from sagellm_control_plane.observing import Observers
from sagellm_control_plane.policies import TABLE, Policy, Preference, Scene, policy_named
from sagellm_control_plane.waiting import WaitQueue
from sagellm_protocol import SageLLMError
from subjects import Ask


class Line:
    """A queue under a policy, served one at a time."""

    def __init__(self, policy: str | Policy, waiting: Sequence[Ask] = (), **scene: float | bool) -> None:
        self.policy = policy_named(policy) if isinstance(policy, str) else policy
        self.queue: WaitQueue[Ask] = WaitQueue(self.policy)
        self.observers = Observers([self.policy])
        self.extra = scene
        for request in waiting:
            self.add(request)

    def scene(self, now: float) -> Scene:
        queue = self.queue
        found = {"urgent_waiting": queue.urgent > 0, "deadlines_waiting": queue.hurried > 0, **self.extra}
        return Scene(**{"now": now, **found})  # type: ignore[arg-type]

    def add(self, request: Ask) -> None:
        self.observers.tell("queued", request, request.arrived)
        self.queue.add(request, self.scene(request.arrived))

    def serve(self, now: float = 10.0) -> Ask | None:
        taken: list[Ask] = []

        def place(request: Ask) -> bool:
            if taken:
                return False
            taken.append(request)
            self.observers.tell("placed", request, 0, now)
            return True

        self.queue.place(self.scene(now), lambda model: not taken, place)
        return taken[0] if taken else None

    def rest(self, now: float = 10.0) -> list[int]:
        return [request.number for request in iter(lambda: self.serve(now), None)]


def order(name: str, waiting: list[Ask], now: float = 10.0, **scene: float | bool) -> list[int]:
    return Line(name, waiting, **scene).rest(now)


def test_fifo_serves_in_order_of_arrival() -> None:
    assert order("fifo", [Ask(2, priority=-2), Ask(1), Ask(3)]) == [1, 2, 3]


def test_priority_serves_the_more_important_first_then_the_older() -> None:
    assert order("priority", [Ask(1, priority=1), Ask(2), Ask(3, priority=-2), Ask(4)]) == [3, 2, 4, 1]


def test_urgent_requests_want_low_latency() -> None:
    policy = policy_named("priority")
    assert policy.preference(Ask(1, priority=-1), Scene(0)) is Preference.LATENCY
    assert policy.preference(Ask(1), Scene(0)) is Preference.BALANCE


def test_a_low_priority_is_served_once_it_has_waited_for_its_steps() -> None:
    low = Ask(1, priority=2, arrived=0.0)
    line = Line("priority", [low])
    served = []
    for second in range(1, 400):
        line.add(Ask(1 + second, priority=0, arrived=float(second)))
        request = line.serve(float(second))
        assert request is not None
        served.append(request.number)
    # Two steps of a minute each, and the tie goes to the more important; the third puts it ahead.
    assert served.index(1) == 180 - 1


def test_what_is_more_important_by_more_than_the_steps_is_never_outwaited() -> None:
    waiting = [Ask(1, priority=9, arrived=0.0), Ask(2, priority=0, arrived=10**6)]
    assert order("priority", waiting, now=10.0**6) == [2, 1]


def test_slo_aware_serves_by_slack() -> None:
    soon, late, none = Ask(1, deadline=15.0), Ask(2, deadline=12.0), Ask(0)
    hoped = Ask(3, arrived=10.0, ttft_slo_s=1.0)
    assert order("slo_aware", [none, soon, late, hoped]) == [3, 2, 1, 0]


def test_slo_aware_wants_low_latency_once_most_of_the_time_is_gone() -> None:
    policy = policy_named("slo_aware")
    assert policy.preference(Ask(1, arrived=2.0, deadline=12.0), Scene(10.0)) is Preference.LATENCY
    assert policy.preference(Ask(1, arrived=5.0, deadline=15.0), Scene(10.0)) is Preference.BALANCE


def test_slo_aware_lets_deadlines_not_starve_what_has_none() -> None:
    line = Line("slo_aware", [Ask(1, arrived=0.0)])
    for second in range(1, 200):
        line.add(Ask(1 + second, arrived=float(second), deadline=second + 10.0))
        request = line.serve(float(second))
        assert request is not None
        if request.number == 1:
            break
    else:
        pytest.fail("a request without a deadline was never served")


@pytest.mark.parametrize("name", ["slo_aware", "adaptive"])
def test_a_deadline_that_the_queue_leaves_no_time_for_is_refused(name: str) -> None:
    line = Line(name)
    for number in range(101):
        line.add(Ask(number, arrived=0.0, prompt_tokens=100))
    assert line.policy.admit(Ask(999, deadline=1.0), line.scene(0.0)) is None, "nothing was measured yet"
    for tenth in range(1, 51):
        line.serve(tenth / 10)
    # A thousand tokens a second, and 51 requests of 100 tokens ahead of those without hurry.
    assert line.policy.admit(Ask(1000, arrived=5.0, deadline=5.2, prompt_tokens=100), line.scene(5.0)) is None
    refusal = line.policy.admit(Ask(1001, arrived=5.0, deadline=5.2, prompt_tokens=1000), line.scene(5.0))
    assert refusal is not None
    assert "1000" in refusal.reason
    for number in range(50):
        line.add(Ask(2000 + number, arrived=5.0, deadline=5.5, prompt_tokens=100))
    crowded = line.policy.admit(Ask(3000, arrived=5.0, deadline=6.0, prompt_tokens=100), line.scene(5.0))
    assert crowded is not None
    assert 2 <= crowded.retry_after_s <= 6


def test_cost_optimized_serves_by_priority_then_by_budget() -> None:
    waiting = [Ask(1), Ask(2, cost_budget=5), Ask(3, cost_budget=1), Ask(4, priority=-1)]
    assert order("cost_optimized", waiting) == [4, 3, 2, 1]
    assert policy_named("cost_optimized").preference(Ask(1), Scene(0)) is Preference.COST


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
    assert policy.preference(Ask(1, priority=-1), scene) is policy_named(in_force).preference(
        Ask(1, priority=-1), scene
    )


def test_adaptive_serves_the_more_important_first_whatever_is_in_force() -> None:
    for load in (0.1, 0.5, 0.9):
        assert order("adaptive", [Ask(1, deadline=10.1), Ask(2, priority=-1)], mean_load=load)[0] == 2


def test_adaptive_sorts_anew_when_another_order_comes_into_force() -> None:
    line = Line("adaptive", mean_load=0.1)
    for request in (Ask(1), Ask(2, deadline=30.0), Ask(3, cost_budget=1.0)):
        line.add(request)
    line.extra = {"mean_load": 0.5}
    assert line.rest() == [2, 1, 3]


waitings = st.builds(
    Ask,
    model=st.sampled_from("mn"),
    arrived=st.floats(0, 10),
    deadline=st.none() | st.floats(0, 20),
    priority=st.integers(-2, 2),
    prompt_tokens=st.integers(1, 3000),
    cost_budget=st.none() | st.floats(0, 10),
    user=st.none() | st.sampled_from("uvw"),
    embeds=st.booleans(),
)


@settings(deadline=None)
@given(st.sampled_from(sorted(TABLE)), st.lists(waitings, max_size=30), st.randoms(use_true_random=False))
def test_everyone_who_waits_is_served_once_whatever_leaves_meanwhile(
    name: str, waiting: list[Ask], chance: random.Random
) -> None:
    line = Line(name)
    served: Counter[int] = Counter()
    gone = 0
    for number, request in enumerate(waiting):
        asked = Ask(**{**vars(request), "number": number})
        line.add(asked)
        what = chance.random()
        if what < 0.2:
            gone += line.queue.remove(asked)
            line.observers.tell("dropped", asked, 10.0)
        elif what < 0.5 and (taken := line.serve(chance.uniform(10, 200))) is not None:
            served[taken.number] += 1
    served.update(line.rest(200.0))
    assert set(served.values()) <= {1}
    assert len(served) + gone == len(waiting)
    assert len(line.queue) == line.queue.urgent == line.queue.hurried == line.queue.tokens == 0


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_policy_of_the_table_is_one(name: str) -> None:
    assert isinstance(policy_named(name), Policy)


def test_an_unknown_policy_is_refused_with_those_there_are() -> None:
    with pytest.raises(SageLLMError, match=r"made-up.*adaptive.*fifo"):
        policy_named("made-up")
