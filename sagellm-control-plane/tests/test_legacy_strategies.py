"""Scheduling policies under SAGE's names, decided by the plane's own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from legacy_subjects import embedder, place, texts, wanted
from sagellm_control_plane.strategies import TABLE, scheduling_policy_named
from sagellm_control_plane.strategies.aegaeon import AegaeonPolicy, DecodingBatch, PrefillGroup
from sagellm_control_plane.strategies.cost_optimized import CostOptimizedPolicy
from sagellm_control_plane.strategies.hybrid_policy import (
    EmbeddingBatch,
    HybridSchedulingConfig,
    HybridSchedulingPolicy,
)
from sagellm_control_plane.types import (
    ExecutionInstance,
    ExecutionInstanceType,
    ParallelismType,
    RequestMetadata,
    RequestPriority,
    SchedulingDecision,
)
from sagellm_protocol import SageLLMError


def ids(requests: list[RequestMetadata]) -> list[str]:
    return [request.request_id for request in requests]


def targets(decisions: list[SchedulingDecision]) -> dict[str, str]:
    return {decision.request_id: decision.target_instance_id for decision in decisions}


def decide(name: str, requests: list[RequestMetadata], *instances: ExecutionInstance) -> list[SchedulingDecision]:
    return scheduling_policy_named(name).schedule(requests, list(instances))


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("fifo", ["old", "soon", "critical", "cheap"]),
        ("priority", ["critical", "old", "soon", "cheap"]),
        ("slo_aware", ["soon", "old", "critical", "cheap"]),
        ("cost_optimized", ["critical", "cheap", "old", "soon"]),
        ("adaptive", ["critical", "old", "soon", "cheap"]),
    ],
)
def test_requests_are_served_in_the_policys_order(name: str, order: list[str]) -> None:
    waiting = [
        wanted("cheap", 1, cost_budget=0.1),
        wanted("soon", 3, slo_deadline_ms=10_000.0),
        wanted("critical", 2, priority=RequestPriority.CRITICAL),
        wanted("old", 4),
    ]
    policy = scheduling_policy_named(name)
    assert ids(policy.prioritize(waiting)) == order
    decided = policy.schedule(waiting, [place("a")])
    assert [decision.request_id for decision in decided] == order


@pytest.mark.parametrize("name", sorted(set(TABLE) - {"cost_optimized"}))
def test_a_burst_in_one_call_is_spread(name: str) -> None:
    waiting = [wanted(priority=RequestPriority.HIGH, model_name=f"m{i}") for i in range(20)]
    instances = [place(name, "any", avg_latency_ms=100.0) for name in ("a", "b")]
    for request in waiting:
        request.model_name = None if name != "aegaeon" else request.model_name
    assert Counter(targets(decide(name, waiting, *instances)).values()) == {"a": 10, "b": 10}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_no_instance_is_given_more_than_it_takes(name: str) -> None:
    waiting = [wanted() for _ in range(8)]
    instances = [
        place("full", max_concurrent_requests=2, active_requests=2),
        place("ill", is_healthy=False),
        place("room", max_concurrent_requests=5, active_requests=2),
    ]
    found = Counter(targets(decide(name, waiting, *instances)).values())
    if name == "aegaeon":
        assert set(found) == {"room"}
    else:
        assert found == {"room": 3}


def test_the_least_loaded_share_is_taken() -> None:
    instances = [place("a", current_load=0.4, max_concurrent_requests=10), place("b", current_load=0.35)]
    assert targets(decide("fifo", [wanted("r")], *instances)) == {"r": "b"}


def test_urgent_requests_go_where_answers_come_soonest_and_others_where_load_is_least() -> None:
    instances = [
        place("quick", avg_latency_ms=10.0, current_load=0.5),
        place("idle", avg_latency_ms=90.0, current_load=0.0),
    ]
    waiting = [wanted("high", priority=RequestPriority.HIGH), wanted("normal")]
    assert targets(decide("priority", waiting, *instances)) == {"high": "quick", "normal": "idle"}


def test_only_instances_of_the_model_and_kind_are_taken() -> None:
    instances = [place("a", "m1"), place("b", "m2"), embedder("e")]
    waiting = [wanted("x", model_name="m2"), texts("v"), wanted("none", model_name="m3")]
    assert targets(decide("fifo", waiting, *instances)) == {"x": "b", "v": "e"}


def test_a_preferred_instance_is_taken_while_it_has_room() -> None:
    instances = [place("a"), place("b", current_load=0.9)]
    assert targets(decide("fifo", [wanted("r", preferred_instance_id="b")], *instances)) == {"r": "b"}


def test_cost_is_reckoned_from_devices_price_and_measured_speed() -> None:
    instances = [
        place("dear", gpu_count=8, throughput_tokens_per_sec=1000.0),
        place("cheap", gpu_count=2, throughput_tokens_per_sec=500.0, avg_latency_ms=20.0),
    ]
    request = wanted("r", prompt="x" * 400, max_tokens=150)
    [decision] = CostOptimizedPolicy(price_per_gpu_hour=3.6).schedule([request], instances)
    assert decision.target_instance_id == "cheap"
    assert decision.estimated_cost == pytest.approx(2 * 0.001 * 250 / 500)
    assert decision.estimated_latency_ms == pytest.approx(20.0 / (1 - 0.01))


def test_what_was_not_measured_is_none() -> None:
    [decision] = decide("fifo", [wanted()], place("a"))
    assert decision.estimated_latency_ms is None
    assert decision.estimated_cost is None
    assert decision.confidence == 0.0


def test_a_decision_says_how_the_model_is_spread() -> None:
    [decision] = decide("fifo", [wanted()], place("a", tensor_parallel_size=4, pipeline_parallel_size=2))
    assert decision.parallelism_strategy is ParallelismType.HYBRID
    assert (decision.tensor_parallel_size, decision.pipeline_parallel_size) == (4, 2)


@pytest.mark.parametrize(
    ("fields", "load", "selected"),
    [
        ({"priority": RequestPriority.HIGH}, 0.9, "priority"),
        ({"slo_deadline_ms": 60_000.0}, 0.9, "slo_aware"),
        ({}, 0.1, "cost_optimized"),
        ({}, 0.5, "slo_aware"),
    ],
)
def test_adaptive_says_which_order_is_in_force_and_why(fields: dict[str, Any], load: float, selected: str) -> None:
    [decision] = decide("adaptive", [wanted(**fields)], place("a", current_load=load))
    assert decision.metadata["selected_policy"] == selected
    assert decision.reason.startswith("adaptive: ")


def test_an_unknown_policy_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"'made-up'.*adaptive, aegaeon") as refusal:
        scheduling_policy_named("made-up")
    assert isinstance(refusal.value, SageLLMError)


# --- aegaeon ------------------------------------------------------------------------------------------------------


def test_aegaeon_groups_prompts_by_model_and_opens_a_group_where_the_least_work_waits() -> None:
    policy = AegaeonPolicy(max_group_size=2, estimated_scaling_overhead=0.0)
    waiting = [wanted(f"{model}{i}", 10 - i, model_name=model) for i in range(3) for model in ("a", "b")]
    found = targets(policy.schedule(waiting, [place("x"), place("y")]))
    assert found["a0"] == found["a1"] != found["b0"] == found["b1"]
    groups = policy.prefill_groups(found["a0"])
    assert groups[0] == PrefillGroup("a", [waiting[0], waiting[2]], 2)
    assert groups[0].is_full
    assert not groups[0].can_add(wanted(model_name="a"))
    order = [policy.get_next_prefill_request(found["a0"]) for _ in range(2)]
    assert [request and request.request_id for request in order] == ["a0", "a1"]


def test_aegaeon_forgets_prompts_that_ended_and_instances_that_went() -> None:
    policy = AegaeonPolicy()
    first, second = wanted("1", 3, model_name="a"), wanted("2", 2, model_name="b")
    policy.schedule([first, second], [place("x"), place("y")])
    first.start_time = first.arrival_time
    assert targets(policy.schedule([second], [place("y")])) == {"2": "y"}
    assert policy.get_next_prefill_request("y") is second
    assert policy.get_next_prefill_request("y") is None
    assert policy.get_next_prefill_request("x") is None


def test_aegaeon_shares_a_round_by_quotas_that_keep_each_batchs_promise() -> None:
    policy = AegaeonPolicy(qmax=4.0, estimated_scaling_overhead=0.5)
    requests = [wanted(model_name=model, tbt_slo_ms=slo) for model, slo in (("a", 100.0), ("a", 200.0), ("b", 50.0))]
    for request in requests:
        policy.add_to_decoding_batch(request, "x")
        policy.add_to_decoding_batch(request, "x")
    turns = policy.schedule_decoding_round("x")
    assert [(batch.model_name, len(batch.requests), batch.n_value) for batch, _ in turns] == [("a", 2, 4), ("b", 1, 2)]
    # c = 1 s of switching; alpha = max(c / (2 * 4) + 3/4, 1/2) = 7/8; q = c / (n * (alpha - 3/4)).
    assert [seconds for _, seconds in turns] == pytest.approx([2.0, 4.0])
    batch = turns[0][0]
    assert policy.execute_batch_with_quota(batch, "x") == 80
    assert batch.tokens_executed == 160
    assert policy.execute_batch_with_quota(batch, "x") == 0
    for request in requests:
        request.end_time = request.arrival_time
    assert policy.schedule_decoding_round("x") == []


def test_aegaeon_decodes_where_the_model_is_decoded_already() -> None:
    policy = AegaeonPolicy()
    policy.add_to_decoding_batch(wanted(model_name="a"), "y")
    ready = wanted("r", model_name="a", prefill_completed=True)
    other = wanted("s", model_name="b", prefill_completed=True)
    assert targets(policy.schedule([ready, other], [place("x"), place("y")])) == {"r": "y", "s": "x"}


def test_a_quota_is_used_up() -> None:
    batch = DecodingBatch("m", time_quota=1.0)
    batch.reset_quota()
    assert batch.consume_quota(0.75) == 0.25
    assert batch.consume_quota(0.75) == 0.0


# --- hybrid -------------------------------------------------------------------------------------------------------


def test_hybrid_places_embeddings_in_batches_of_one_model() -> None:
    policy = HybridSchedulingPolicy(embedding_batch_size=4)
    waiting = [texts(f"e{i}", 2, embedding_model="v") for i in range(6)] + [wanted("chat")]
    instances = [place("llm"), embedder("e1", embedding_model_loaded="v"), embedder("e2", embedding_model_loaded="v")]
    decided = policy.schedule(waiting, instances)
    batches = {d.metadata["batch_id"]: d.metadata for d in decided if d.request_id != "chat"}
    assert sorted((facts["batch_size"], facts["batch_texts"]) for facts in batches.values()) == [(2, 4), (4, 8)]
    assert targets(decided)["chat"] == "llm"
    metrics = policy.get_metrics()
    assert (metrics["llm_requests"], metrics["embedding_requests"], metrics["embedding_texts"]) == (1, 6, 12)
    assert metrics["avg_embedding_batch_size"] == 3.0
    policy.reset_metrics()
    assert set(policy.get_metrics().values()) == {0}


def test_hybrid_leaves_instances_that_do_both_to_those_who_need_them() -> None:
    both = place("both", instance_type=ExecutionInstanceType.LLM_EMBEDDING, max_concurrent_requests=10)
    special = embedder("special", max_concurrent_requests=1)
    policy = HybridSchedulingPolicy()
    assert targets(policy.schedule([texts("e"), wanted("c")], [both, special])) == {"e": "special", "c": "both"}
    special.active_requests = 1
    assert targets(policy.schedule([texts("e")], [both, special])) == {"e": "both"}
    assert len(policy.schedule([texts() for _ in range(9)], [both, special])) == 3
    both.embedding_active_requests = 3
    assert policy.schedule([texts("e")], [both, special]) == []


def test_hybrid_holds_back_embeddings_that_are_too_few_but_not_for_long() -> None:
    policy = HybridSchedulingPolicy(
        config=HybridSchedulingConfig(min_embedding_batch_size=3, max_embedding_wait_ms=60_000.0)
    )
    instances = [embedder("e")]
    assert policy.schedule([texts(), texts()], instances) == []
    assert policy.get_metrics()["held_back"] == 2
    assert len(policy.schedule([texts(), texts(), texts()], instances)) == 3
    assert len(policy.schedule([texts(ago_s=61.0)], instances)) == 1


@pytest.mark.parametrize(
    "bad", [{"embedding_priority": "top"}, {"embedding_batch_size": 0}, {"hybrid_instance_ratio": 1.5}]
)
def test_hybrid_refuses_what_cannot_be(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        HybridSchedulingPolicy(**bad)


def test_a_batch_takes_only_its_own_model() -> None:
    batch = EmbeddingBatch()
    assert batch.add_request(texts(embedding_model="v", count=2))
    assert not batch.add_request(texts(embedding_model="w"))
    assert not batch.add_request(wanted())
    assert (batch.size, batch.total_texts, batch.model) == (1, 2, "v")
