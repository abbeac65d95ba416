"""Choices of an engine, on plain values."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sagellm_control_plane.board import Board, Place, Role
from sagellm_control_plane.routing import TABLE, PhaseRule, Router, able, router_named
from sagellm_protocol import BlocksCleared, BlocksRemoved, BlocksStored, KVEventBatch, SageLLMError
from subjects import Ask, Ring

BLOCKS = tuple(range(16))


def test_least_load_counts_tokens_rather_than_requests() -> None:
    ring = Ring("least_load", "large", "small")
    ring.set("large", sequences=1, queued_tokens=4000)
    ring.set("small", sequences=5, queued_tokens=50)
    assert ring.choose() == "small"


@pytest.mark.parametrize("column", ["queued_tokens", "held_tokens", "foreign_tokens"])
def test_least_load_sees_work_queued_held_and_of_others(column: str) -> None:
    ring = Ring("least_load", "busy", "idle")
    ring.set("busy", **{column: 100})
    ring.set("idle", queued_tokens=99)
    assert ring.choose() == "idle"


@pytest.mark.parametrize("name", ["least_load", "least_queued", "cost", "predicted_latency", "weighted", "round_robin"])
def test_a_burst_is_spread_because_decisions_see_each_other(name: str) -> None:
    ring = Ring(name, *"abcd")
    counts = Counter(ring.place(Ask(number)) for number in range(40))
    assert set(counts.values()) == {10}


def test_ties_are_drawn_rather_than_given_to_the_first() -> None:
    assert len({Ring("least_load", *"abcd", seed=seed).choose() for seed in range(50)}) == 4


def test_round_robin_takes_turns_also_when_an_engine_is_full_for_a_while() -> None:
    ring = Ring("round_robin", *"abc")
    assert [ring.place() for _ in range(3)] == ["a", "b", "c"]
    assert ring.place(among="bc") == "b"
    assert ring.place() == "a"
    assert ring.place() == "c"


def test_power_of_two_avoids_the_loaded_of_the_pair() -> None:
    for seed in range(100):
        ring = Ring("power_of_two", *"abcdefgh", seed=seed)
        ring.set("h", queued_tokens=10**6)
        assert ring.choose() != "h"


def test_random_draws_from_all() -> None:
    ring = Ring("random", *"abcd")
    assert min(Counter(ring.choose() for _ in range(400)).values()) > 50


def test_weighted_keeps_to_the_shares_and_starts_newcomers_level() -> None:
    ring = Ring("weighted", "main", "canary", "off")
    ring.set("main", weight=9)
    ring.set("off", weight=0)
    assert Counter(ring.place() for _ in range(100)) == {"main": 90, "canary": 10}
    ring.join("new", weight=1)
    counts = Counter(ring.place() for _ in range(110))
    assert abs(counts["new"] - 10) <= 1
    assert counts["off"] == 0


def test_weighted_serves_by_load_where_every_weight_is_nought() -> None:
    ring = Ring("weighted", "a", "b", weight=0)
    ring.set("a", queued_tokens=5)
    assert ring.place() == "b"


def test_affinity_moves_only_the_users_of_an_engine_that_is_gone() -> None:
    ring = Ring("affinity", *"abcde")
    home = {f"u{i}": ring.choose(Ask(user=f"u{i}")) for i in range(200)}
    assert set(home.values()) == set("abcde")
    ring.leave("c")
    for user, engine in home.items():
        assert engine == "c" or ring.choose(Ask(user=user)) == engine


def test_affinity_sends_a_user_back_once_there_is_room_again() -> None:
    ring = Ring("affinity", *"abc")
    home = ring.choose(Ask(session_id="s"))
    elsewhere = ring.choose(Ask(session_id="s"), among=[engine for engine in "abc" if engine != home])
    assert elsewhere != home
    assert ring.choose(Ask(session_id="s")) == home


def test_affinity_without_a_user_goes_by_load() -> None:
    ring = Ring("affinity", "busy", "idle")
    ring.set("busy", queued_tokens=9)
    assert ring.choose() == "idle"


def test_lowest_latency_prefers_the_fast_and_tries_the_unmeasured() -> None:
    ring = Ring("lowest_latency", "slow", "fast")
    ring.set("slow", latency_s=0.9)
    ring.set("fast", latency_s=0.1)
    assert ring.choose() == "fast"
    ring.join("new")
    assert ring.choose() == "new"


def test_cheapest_prices_a_token_in_device_seconds() -> None:
    ring = Ring("cheapest", "big", "small")
    ring.set("big", devices=4, throughput_tps=200.0)
    assert ring.choose() == "small"
    ring.set("small", throughput_tps=40.0)
    assert ring.choose() == "big"


@pytest.mark.parametrize("name", ["cost", "locality"])
def test_a_prompt_goes_where_its_prefix_was_sent(name: str) -> None:
    ring = Ring(name, *"abcd")
    first = Ask(1, prompt_tokens=1024, block_hashes=BLOCKS)
    engine = ring.place(first)
    ring.begin(first, engine)
    ring.end(first, engine)
    longer = Ask(2, prompt_tokens=1088, block_hashes=(*BLOCKS, 99))
    assert {ring.choose(longer) for _ in range(20)} == {engine}


@pytest.mark.parametrize("name", ["cost", "locality"])
def test_a_prefix_does_not_draw_requests_to_an_engine_that_is_overloaded(name: str) -> None:
    ring = Ring(name, "a", "b")
    first = Ask(1, prompt_tokens=1024, block_hashes=BLOCKS)
    home = ring.place(first)
    ring.begin(first, home)
    for number in range(2, 40):
        ring.board.queued_tokens[ring.rows[home]] += 1024
        ring.router.placed(Ask(number, prompt_tokens=1024), ring.rows[home], 0.0)
    assert ring.choose(Ask(99, prompt_tokens=1024, block_hashes=BLOCKS)) != home


def test_one_block_at_the_head_of_every_prompt_does_not_send_all_to_one_engine() -> None:
    ring = Ring("cost", *"abcd")
    taken = Counter(
        ring.place(Ask(number, prompt_tokens=1024, block_hashes=(0, *range(number * 100, number * 100 + 15))))
        for number in range(1, 41)
    )
    assert max(taken.values()) <= 12


def test_the_cost_rule_counts_a_queued_prompt_without_what_its_engine_had() -> None:
    ring = Ring("cost", "a", "b")
    home = ring.place(Ask(1, prompt_tokens=1024, block_hashes=BLOCKS))
    ring.begin(Ask(1, prompt_tokens=1024, block_hashes=BLOCKS), home)
    ring.set(home, held_tokens=0)
    ring.place(Ask(2, prompt_tokens=1024, block_hashes=BLOCKS), among=[home])
    other = "b" if home == "a" else "a"
    ring.place(Ask(3, prompt_tokens=64), among=[other])
    # The 1,024 tokens that wait at home are all cached: there is less to do than the other's 64.
    assert ring.choose(Ask(4)) == home


def test_the_guesses_stay_within_what_an_engine_holds() -> None:
    ring = Ring("cost", "a", cache_tokens=64 * 8)
    for number in range(10):
        ring.place(Ask(number, prompt_tokens=256, block_hashes=tuple(range(number * 4, number * 4 + 4))))
    router = ring.router
    held = [int(router.cached(Ask(99, block_hashes=tuple(range(n * 4, n * 4 + 4))), ring.board)[0]) for n in range(10)]  # type: ignore[attr-defined]
    assert held == [0] * 8 + [256, 256]


def test_an_engine_that_lost_its_cache_attracts_nothing() -> None:
    ring = Ring("cost", *"ab")
    first = Ask(1, prompt_tokens=1024, block_hashes=BLOCKS)
    home = ring.place(first)
    ring.end(first, home)
    ring.router.cache_lost(ring.rows[home])
    ring.set(home, queued_tokens=0, held_tokens=0)
    assert {ring.choose(Ask(2, prompt_tokens=1024, block_hashes=BLOCKS)) for _ in range(30)} == {"a", "b"}


def told(sequence: int, *events: object, epoch: str = "e") -> KVEventBatch:
    return KVEventBatch(engine_id="a", epoch=epoch, sequence=sequence, events=events)


HASHES = tuple(bytes([i]) * 32 for i in range(8))
STORED = BlocksStored(block_hashes=HASHES, block_size=16)


def exact(*batches: KVEventBatch) -> set[str]:
    ring = Ring("prefix_events", *"ab")
    for batch in batches:
        ring.router.cache_changed(ring.rows["a"], batch)
    return {ring.choose(Ask(1, prompt_tokens=128, block_hashes=HASHES, block_size=16)) for _ in range(30)}


def test_exact_prefixes_follow_the_events_of_engines() -> None:
    assert exact(told(0, STORED)) == {"a"}
    assert exact(told(0, STORED), told(1, BlocksRemoved(block_hashes=HASHES))) == {"a", "b"}
    assert exact(told(0, STORED), told(1, BlocksRemoved(block_hashes=HASHES[4:]))) == {"a"}
    assert exact(told(0, STORED), told(1, BlocksCleared())) == {"a", "b"}


def test_a_block_held_in_two_media_is_held_until_it_has_left_both() -> None:
    twice = told(0, STORED, BlocksStored(block_hashes=HASHES, block_size=16, medium="host"))
    assert exact(twice, told(1, BlocksRemoved(block_hashes=HASHES))) == {"a"}
    gone = BlocksRemoved(block_hashes=HASHES, medium="host")
    assert exact(twice, told(1, BlocksRemoved(block_hashes=HASHES), gone)) == {"a", "b"}


def test_after_a_gap_or_a_new_epoch_what_was_told_before_is_void() -> None:
    other = BlocksStored(block_hashes=(b"x" * 32,), block_size=16)
    assert exact(told(0, STORED), told(2, other)) == {"a", "b"}
    assert exact(told(0, STORED), told(1, other, epoch="f")) == {"a", "b"}


def test_topology_prefers_the_near_in_order_of_nearness() -> None:
    ring = Ring("topology_aware")
    ring.join("here", Place(host="h1", rack="r1", island="i1"))
    ring.join("island", Place(host="h1", rack="r1", island="i1"))
    ring.join("host", Place(host="h1", rack="r1", island="i2"))
    ring.join("rack", Place(host="h2", rack="r1"))
    ring.join("far", Place(host="h3", rack="r2"))
    order, left = [], list(ring.rows)
    while left:
        chosen = ring.choose(Ask(prompt_tokens=1000, source="here"), among=left)
        order.append(chosen)
        left.remove(chosen)
    assert order == ["here", "island", "host", "rack", "far"]
    ring.set("here", queued_tokens=5000)
    assert ring.choose(Ask(prompt_tokens=1000, source="here")) == "island"


def test_topology_remembers_where_a_session_was() -> None:
    ring = Ring("topology_aware", *"abcd")
    home = ring.place(Ask(1, prompt_tokens=500, session_id="s"))
    ring.set(home, queued_tokens=100)
    assert ring.choose(Ask(2, prompt_tokens=500, session_id="s")) == home


def test_lora_aware_prefers_engines_that_hold_the_adapter_until_they_are_overloaded() -> None:
    ring = Ring("lora_aware", *"abcd")
    ring.board.hold_adapters(ring.rows["c"], ["french"])
    assert {ring.choose(Ask(adapter="french")) for _ in range(20)} == {"c"}
    ring.set("c", queued_tokens=10**5)
    spill = ring.place(Ask(1, adapter="french"))
    assert spill != "c"
    assert {ring.choose(Ask(2, adapter="french")) for _ in range(20)} == {spill}


def test_lora_aware_forgets_the_adapter_used_longest_ago() -> None:
    ring = Ring("lora_aware", *"ab")
    for number in range(9):
        ring.place(Ask(number, adapter=f"l{number}", prompt_tokens=0), among="a")
    assert {ring.choose(Ask(99, adapter="l8")) for _ in range(20)} == {"a"}
    ring.set("a", sequences=0)
    assert {ring.choose(Ask(99, adapter="l0")) for _ in range(30)} == {"a", "b"}


def test_predicted_latency_learns_which_engine_is_fast() -> None:
    ring = Ring("predicted_latency", "slow", "fast")
    for number in range(20):
        for engine, seconds in (("slow", 1.0), ("fast", 0.25)):
            request = Ask(number * 2 + (engine == "fast"), prompt_tokens=1000)
            ring.place(request, among=[engine])
            ring.begin(request, engine, now=seconds)
            ring.end(request, engine)
    counts = Counter(ring.place(Ask(1000 + number, prompt_tokens=1000)) for number in range(50))
    assert 35 <= counts["fast"] <= 45


def test_predicted_latency_takes_the_cached_engine_while_that_keeps_the_slo() -> None:
    ring = Ring("predicted_latency", "a", "b")
    warm = Ask(1, prompt_tokens=1024, block_hashes=BLOCKS)
    ring.place(warm, among="a")
    ring.begin(warm, "a", now=1.0)
    ring.place(Ask(2, prompt_tokens=2000), among="a")
    asked = Ask(3, prompt_tokens=1024, block_hashes=BLOCKS)
    hurried = Ask(3, prompt_tokens=1024, block_hashes=BLOCKS, ttft_slo_s=1.5)
    patient = Ask(3, prompt_tokens=1024, block_hashes=BLOCKS, ttft_slo_s=10.0)
    assert ring.choose(asked) == ring.choose(hurried) == "b"
    assert ring.choose(patient) == "a"


def test_parts_of_the_work_go_to_engines_made_for_them() -> None:
    ring = Ring("prefill_decode", "p", "d", "both")
    ring.set("p", role=Role.PREFILL)
    ring.set("d", role=Role.DECODE)
    rows = np.array(sorted(ring.rows.values()))

    def names(role: Role, rows: np.ndarray[tuple[int], np.dtype[np.int64]] = rows) -> list[str]:
        return [ring.board.engine_ids[row] for row in able(ring.board, rows, role)]

    assert names(Role.PREFILL) == ["p"]
    assert names(Role.DECODE) == ["d"]
    assert names(Role.BOTH) == ["both"]
    assert names(Role.BOTH, rows[:2]) == ["d"]
    assert names(Role.DECODE, rows[[0, 2]]) == ["both"]
    assert names(Role.BOTH, rows[:1]) == []


def test_an_answer_goes_where_least_is_held_and_near_to_its_prompt() -> None:
    ring = Ring("prefill_decode")
    ring.join("p", Place(host="h"))
    ring.join("near", Place(host="h"))
    ring.join("far", Place(host="g"))
    ask = Ask(role=Role.DECODE, source="p", prompt_tokens=1000)
    assert ring.choose(ask, among=["near", "far"]) == "near"
    ring.set("near", held_tokens=2000)
    assert ring.choose(ask, among=["near", "far"]) == "far"


@pytest.mark.parametrize(
    ("request_", "output", "apart"),
    [
        (Ask(prompt_tokens=801), 1000, True),
        (Ask(prompt_tokens=800), 1000, False),
        (Ask(prompt_tokens=401), 100, True),
        (Ask(prompt_tokens=400), 100, False),
        (Ask(prompt_tokens=5000, priority=-2), 499, False),
        (Ask(prompt_tokens=5000, priority=-2), 500, True),
        (Ask(prompt_tokens=5000, deadline=0.05), 10, False),
        (Ask(prompt_tokens=5000, embeds=True), 1, False),
    ],
)
def test_long_prompts_are_computed_apart_unless_there_is_no_time(request_: Ask, output: int, apart: bool) -> None:
    assert PhaseRule().separates(request_, output, now=0.0) is apart


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_router_takes_the_only_engine(name: str) -> None:
    assert isinstance(router_named(name), Router)
    assert Ring(name, "a").place() == "a"


asks = st.builds(
    Ask,
    prompt_tokens=st.integers(0, 5000),
    block_hashes=st.lists(st.integers(0, 9), max_size=6).map(tuple),
    user=st.none() | st.sampled_from("uvw"),
    session_id=st.none() | st.sampled_from("st"),
    adapter=st.none() | st.sampled_from("xyz"),
    ttft_slo_s=st.none() | st.floats(0.01, 10),
    tpot_slo_s=st.none() | st.floats(0.001, 1),
    source=st.none() | st.sampled_from(["e0", "e1", "gone"]),
    role=st.sampled_from(Role),
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(TABLE)), st.lists(st.tuples(st.integers(0, 9), asks), max_size=60), st.integers(0, 5))
def test_a_router_returns_a_candidate_whatever_came_and_went_and_the_same_by_the_same_chance(
    name: str, script: list[tuple[int, Ask]], seed: int
) -> None:
    def play() -> list[str]:
        ring, chosen = Ring(name, "e0", "e1", seed=seed), []
        flying: list[tuple[Ask, str]] = []
        chance = random.Random(seed)
        for number, (what, ask) in enumerate(script):
            if what == 0:
                ring.join(f"n{number}", throughput_tps=ask.prompt_tokens, weight=seed)
            elif what == 1 and len(ring.rows) > 1:
                gone = chance.choice(sorted(ring.rows))
                flying = [(request, engine) for request, engine in flying if engine != gone]
                ring.leave(gone)
            elif what == 2 and flying:
                request, engine = flying.pop(0)
                ring.begin(request, engine, now=number)
                ring.end(request, engine, now=number + 1)
            elif what == 3:
                ring.router.cache_lost(ring.rows[chance.choice(sorted(ring.rows))])
            else:
                request = Ask(**{**vars(ask), "number": number})
                among = chance.sample(sorted(ring.rows), chance.randint(1, len(ring.rows)))
                engine = ring.place(request, among, now=number)
                assert engine in among
                flying.append((request, engine))
                chosen.append(engine)
        return chosen

    assert play() == play()


def test_a_row_is_used_again_and_says_nothing_of_the_engine_before() -> None:
    board = Board()
    row = board.join("a", Place(host="h"))
    board.describe(row, capacity=7, weight=3.0)
    board.hold_adapters(row, ["x"])
    board.leave(row)
    assert not list(board.live_rows())
    assert board.join("b") == row
    assert (board.capacity[row], board.weight[row], board.host[row]) == (1, 1.0, -1)
    assert not board.holders("x")


def test_an_unknown_router_is_refused_with_those_there_are() -> None:
    with pytest.raises(SageLLMError, match=r"made-up.*least_load.*round_robin"):
        router_named("made-up")
