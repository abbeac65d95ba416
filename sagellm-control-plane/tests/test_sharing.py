"""Orders that promise something to everyone: shares, bounds on waiting, turns."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from sagellm_control_plane.policies import Preference
from sagellm_control_plane.policies.aegaeon import Aegaeon
from sagellm_control_plane.policies.fair import OUTPUT_WEIGHT, PROMPT_WEIGHT, REMEMBERED, Fair
from sagellm_control_plane.policies.hybrid import Hybrid
from sagellm_control_plane.policies.shortest_first import ShortestFirst
from sagellm_control_plane.pooling import Batch, PrefillQueues, least_batches, quotas, round_order
from sagellm_control_plane.service import create
from sagellm_protocol import SageLLMError
from subjects import Ask
from test_policies import Line

LONGEST = 100
IN_FLIGHT = 4


def serve_backlog(fair: Fair, sizes: list[tuple[int, int, int]], weights: dict[str, float]) -> dict[str, float]:
    """Serve two tenants who always both wait; the largest difference of their served tokens is noted as it goes."""
    line, flying = Line(fair), list[tuple[Ask, int]]()
    served: dict[str, float] = dict.fromkeys("uv", 0.0)
    worst = 0.0
    number = 0
    for prompt, output, _ in sizes:
        for user in "uv":
            while sum(request.user == user for request in line.queue) < 2:
                number += 1
                line.add(Ask(number, user=user, prompt_tokens=prompt))
        request = line.serve()
        assert request is not None
        assert request.user is not None
        served[request.user] += PROMPT_WEIGHT * request.prompt_tokens / weights.get(request.user, 1.0)
        flying.append((request, output))
        if len(flying) >= IN_FLIGHT:
            done, tokens = flying.pop(0)
            assert done.user is not None
            fair.produced(done, 0, tokens, 0.0)
            served[done.user] += OUTPUT_WEIGHT * tokens / weights.get(done.user, 1.0)
            fair.left(done, 0, 0.0)
        worst = max(worst, abs(served["u"] - served["v"]))
    return {**served, "worst": worst}


sizes = st.lists(st.tuples(st.integers(1, LONGEST), st.integers(1, LONGEST), st.integers(0, 1)), max_size=200)


@settings(deadline=None)
@given(sizes)
def test_two_tenants_that_both_wait_are_served_alike_within_the_bound_of_the_paper(
    drawn: list[tuple[int, int, int]],
) -> None:
    found = serve_backlog(Fair(), drawn, {})
    assert found["worst"] <= 2 * max(PROMPT_WEIGHT * LONGEST, OUTPUT_WEIGHT * LONGEST * IN_FLIGHT)


def test_a_tenant_of_thrice_the_weight_is_served_thrice_as_much() -> None:
    weights = {"u": 3.0}
    found = serve_backlog(Fair(weights), [(50, 50, 0)] * 2000, weights)
    # Both are divided by weight: equal means three to one.
    assert found["u"] == pytest.approx(found["v"], rel=0.02)


def test_a_tenant_that_sends_much_does_not_delay_one_that_sends_little() -> None:
    line = Line("fair", [Ask(number, user="much") for number in range(1, 100)])
    for _ in range(10):
        line.serve()
    line.add(Ask(1000, user="little"))
    # Level with the other from now on; the tie goes to the older.
    assert 1000 in [request.number for _ in range(2) if (request := line.serve()) is not None]


def test_who_was_away_has_not_saved_up() -> None:
    line = Line("fair", [Ask(1, user="late"), *(Ask(number, user="busy") for number in range(10, 200))])
    for _ in range(100):
        line.serve()
    for number in range(1000, 1050):
        line.add(Ask(number, user="late"))
    served = Counter(request.user for _ in range(40) if (request := line.serve()) is not None)
    assert abs(served["late"] - served["busy"]) <= 2


def test_the_counters_of_tenants_that_are_gone_are_forgotten() -> None:
    fair = Fair()
    for number in range(REMEMBERED + 500):
        request = Ask(number, user=f"u{number}")
        fair.queued(request, 0.0)
        fair.placed(request, 0, 0.0)
        fair.left(request, 0, 0.0)
    assert len(vars(fair)["_served"]) <= REMEMBERED
    assert not vars(fair)["_waiting"]
    assert not vars(fair)["_flying"]


def test_weights_are_set_by_the_operator_and_only_where_they_are_honoured() -> None:
    plane = create(policy="fair", tenant_weights={"u": 2.0})
    assert isinstance(plane.dispatcher.queue.policy, Fair)
    with pytest.raises(SageLLMError, match="need the policy 'fair'"):
        create(tenant_weights={"u": 2.0})
    with pytest.raises(SageLLMError, match="must be above 0"):
        create(policy="fair", tenant_weights={"u": 0.0})


@given(st.integers(1, 5000), st.floats(10, 1000))
def test_a_long_prompt_is_overtaken_only_for_as_long_as_its_length_is_worth(tokens: int, ageing: float) -> None:
    line = Line(ShortestFirst(ageing), [Ask(0, prompt_tokens=tokens, arrived=0.0)])
    gap = max(1e-3, tokens / ageing / 50)
    for number in range(1, 200):
        line.add(Ask(number, prompt_tokens=1, arrived=number * gap))
        request = line.serve(number * gap)
        assert request is not None
        if request.number == 0:
            break
        assert request.arrived <= tokens / ageing
    else:
        pytest.fail("a long prompt starved")


def test_the_shorter_is_first_among_those_that_came_together() -> None:
    waiting = [Ask(1, prompt_tokens=900), Ask(2, prompt_tokens=10), Ask(3, prompt_tokens=500)]
    assert Line("shortest_first", waiting).rest() == [2, 3, 1]


def test_groups_are_of_one_model_and_bounded_and_served_in_the_order_they_were_opened() -> None:
    models = "mnmmnm"
    line = Line(Aegaeon(most=3), [Ask(number, model=model) for number, model in enumerate(models)])
    # The first group holds three of m; the fourth m opens a group behind that of n.
    assert line.rest() == [0, 2, 3, 1, 4, 5]


def test_a_group_that_was_served_is_not_joined() -> None:
    line = Line(Aegaeon(), [Ask(1, model="m"), Ask(2, model="n")])
    assert line.serve() == Ask(1, model="m")
    line.add(Ask(3, model="m"))
    assert line.rest() == [2, 3]


def test_prompts_join_a_group_of_their_model_or_go_where_least_waits() -> None:
    queues: PrefillQueues[str] = PrefillQueues(2, switch_s=1.0, most=2)
    assert queues.add("a", "m", 5.0) == 0
    assert queues.add("b", "n", 1.0) == 1
    assert queues.add("c", "m", 1.0) == 0, "its model's group is there"
    assert queues.add("d", "m", 1.0) == 1, "that group is full, and less waits at the other"
    assert queues.load_s(1) == 1.0 + 1.0 + 1.0 + 1.0
    assert [queues.next(0) for _ in range(3)] == [("a", "m", True), ("c", "m", False), None]
    assert [queues.next(1) for _ in range(2)] == [("b", "n", True), ("d", "m", True)]


batches = st.lists(
    st.builds(Batch, st.sampled_from("mnop"), st.floats(0.02, 0.5), st.floats(0.001, 0.1)), min_size=1, max_size=8
)


@given(batches, st.floats(0.01, 10))
def test_turns_are_within_the_longest_and_in_inverse_proportion_to_the_lead(
    found: list[Batch], switch_s: float
) -> None:
    ordered = round_order(found)
    turns = quotas(ordered, switch_s)
    assert all(0 < turn <= 4.0 * (1 + 1e-9) for turn in turns)
    changes = len({batch.model for batch in ordered})
    if changes > 1:
        products = [turn * batch.lead for turn, batch in zip(turns, ordered, strict=True)]
        assert products == pytest.approx([products[0]] * len(products))
    else:
        assert turns == [4.0] * len(found)


def test_a_promise_that_can_be_kept_is_kept_by_every_turn() -> None:
    found = [Batch("m", 0.1, 0.025), Batch("n", 0.1, 0.025)]
    turns = quotas(found, switch_s=0.5)
    length = sum(turns) + 2 * 0.5
    for batch, turn in zip(found, turns, strict=True):
        assert turn / batch.step_s * batch.token_slo_s >= length


def test_an_answer_joins_its_model_or_the_emptiest_engine() -> None:
    m, n = Batch("m", 0.1, 0.02), Batch("n", 0.1, 0.02)
    assert least_batches([[m], [n, n]], "n") == 1
    assert least_batches([[m, m], [n]], "o") == 1


def test_a_turn_of_embeddings_is_a_batch_of_one_model_placed_together() -> None:
    chats = [Ask(number) for number in range(1, 20)]
    embeds = [Ask(100 + number, model="e" if number % 2 else "f", embeds=True) for number in range(12)]
    policy = Hybrid(batch=4, share=0.5)
    line = Line(policy, [*chats, *embeds])
    kinds = []
    for _ in range(31):
        request = line.serve()
        assert request is not None
        kinds.append(request.model if request.embeds else "chat")
        if request.embeds and vars(policy)["_open"] is not None:
            assert policy.preference(request, line.scene(0.0)) is Preference.TOGETHER
    assert kinds.count("e") == kinds.count("f") == 6
    first = min(kinds.index("f"), kinds.index("e"))
    assert len(set(kinds[first : first + 4])) == 1
    assert kinds[first + 4] == "chat"


def test_neither_chat_nor_embeddings_starve() -> None:
    line = Line(Hybrid(batch=8, share=0.25))
    served: Counter[bool] = Counter()
    for number in range(400):
        line.add(Ask(2 * number))
        line.add(Ask(2 * number + 1, model="e", embeds=True))
        request = line.serve()
        assert request is not None
        served[request.embeds] += 1
    # A turn in four, of eight each: eight embeddings to three chats.
    assert served[True] / served[False] == pytest.approx(8 / 3, rel=0.1)


def test_a_single_embedding_is_not_held_back_to_fill_a_batch() -> None:
    assert Line("hybrid", [Ask(1, embeds=True)]).rest() == [1]
