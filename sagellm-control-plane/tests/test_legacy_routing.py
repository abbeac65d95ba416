"""Choice of an instance, phases and classification under SAGE's names."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from legacy_subjects import embedder, place, texts, wanted
from sagellm_control_plane.pd_routing import PDRoutingStrategy
from sagellm_control_plane.request_classifier import ValidationErrorCode, create_classifier
from sagellm_control_plane.router import LoadBalancer, RequestRouter
from sagellm_control_plane.types import (
    DecodingConfig,
    ExecutionInstance,
    ExecutionInstanceType as Kind,
    PDSeparationConfig,
    PrefillingConfig,
    RequestMetadata,
    RequestPriority,
    RequestType,
    SchedulingDecision,
)
from sagellm_protocol import SageLLMError

# --- router -------------------------------------------------------------------------------------------------------


def routed(router: RequestRouter, instances: list[ExecutionInstance], count: int = 1, **fields: Any) -> list[str]:
    found = [router.route(wanted(**fields), instances) for _ in range(count)]
    return [instance.instance_id for instance in found if instance is not None]


@pytest.mark.parametrize("strategy", ["load_balanced", "round_robin", "power_of_two", "cost", "topology_aware"])
def test_a_burst_is_spread_though_instances_do_not_tell_of_it_yet(strategy: str) -> None:
    instances = [place("a"), place("b")]
    assert Counter(routed(RequestRouter(strategy), instances, 20)) == {"a": 10, "b": 10}


def test_figures_that_an_instance_tells_count_before_what_it_was_sent() -> None:
    router, instances = RequestRouter(), [place("a"), place("b")]
    routed(router, instances, 10)
    instances[0].active_requests, instances[0].current_load = 90, 0.9
    assert set(routed(router, instances, 10)) == {"b"}


def test_affinity_keeps_a_user_and_can_be_set_and_cleared() -> None:
    router, instances = RequestRouter("affinity"), [place(name) for name in "abcd"]
    [home] = set(routed(router, instances, 5, user_id="u"))
    other = next(each.instance_id for each in instances if each.instance_id != home)
    router.update_affinity("u", other)
    assert routed(router, instances, user_id="u") == [other]
    router.clear_affinity("u")
    assert routed(router, instances, user_id="u") == [home]


def test_locality_finds_the_instance_that_has_the_prompts_prefix() -> None:
    router, instances = RequestRouter("locality"), [place(name) for name in "abcd"]
    shared = "a long introduction that many prompts share. " * 50
    [first] = routed(router, instances, prompt=shared)
    assert set(routed(router, instances, 6, prompt=shared + "and a question")) == {first}


def test_topology_keeps_a_session_near_its_cache() -> None:
    router = RequestRouter("topology_aware")
    instances = [
        place("a", machine_id="x", nvlink_peers=["b"]),
        place("b", machine_id="x", nvlink_peers=["a"]),
        place("c", machine_id="y"),
    ]
    prompt = "x" * 8000
    instances[1].active_requests = instances[2].active_requests = 1
    assert routed(router, instances, user_id="u", prompt=prompt) == ["a"]
    instances[0].is_available = False
    assert routed(router, instances, user_id="u", prompt=prompt) == ["b"]


def test_a_decision_and_a_wish_go_first_while_there_is_room() -> None:
    router, instances = RequestRouter(), [place("a"), place("b", current_load=0.9), place("c", current_load=0.9)]
    decision = SchedulingDecision("r", "c", parallelism_strategy=None, estimated_latency_ms=None, estimated_cost=None)  # type: ignore[arg-type]
    request = wanted("r", preferred_instance_id="b")
    chosen = router.route(request, instances, decision)
    assert chosen is instances[2]
    instances[2].is_healthy = False
    assert router.route(request, instances, decision) is instances[1]


def test_nothing_is_chosen_where_nothing_fits() -> None:
    router = RequestRouter()
    assert router.route(wanted(), []) is None
    assert router.route(texts(), [place("a")]) is None
    assert router.route(wanted(model_name="other"), [place("a")]) is None
    assert router.route(wanted(), [place("a", max_concurrent_requests=0)]) is None


def test_an_unknown_name_is_refused_with_the_list() -> None:
    with pytest.raises(SageLLMError, match=r"'made-up'.*round_robin"):
        RequestRouter("made-up")
    with pytest.raises(ValueError, match=r"'made-up'.*weighted_round_robin"):
        LoadBalancer().select_instance([place("a")], "made-up")


# --- balancer -----------------------------------------------------------------------------------------------------


def balanced(balancer: LoadBalancer, instances: list[ExecutionInstance], algorithm: str, count: int) -> Counter[str]:
    found = [balancer.select_instance(instances, algorithm) for _ in range(count)]
    return Counter(instance.instance_id for instance in found if instance is not None)


def test_turns_go_by_free_capacity() -> None:
    instances = [place("a", current_load=0.25), place("b", current_load=0.75)]
    assert balanced(LoadBalancer(), instances, "weighted_round_robin", 40) == {"a": 30, "b": 10}


def test_least_connections_counts_requests() -> None:
    instances = [place("a", active_requests=4), place("b")]
    assert balanced(LoadBalancer(), instances, "least_connections", 10) == {"a": 3, "b": 7}


def test_least_response_time_goes_by_what_was_recorded() -> None:
    balancer, instances = LoadBalancer(), [place("a", avg_latency_ms=5.0), place("b", avg_latency_ms=50.0)]
    assert balanced(balancer, instances, "least_response_time", 1) == {"a": 1}
    for _ in range(3):
        balancer.record_request("a")
        balancer.record_latency("a", 500.0)
    assert balanced(balancer, instances, "least_response_time", 1) == {"b": 1}
    stats = balancer.get_stats("a")
    assert (stats["total_requests"], stats["avg_latency_ms"], stats["p99_latency_ms"]) == (3.0, 500.0, 500.0)
    assert balancer.get_stats("b") == {"total_requests": 0.0}
    assert balancer.select_instance([], "power_of_two") is None


# --- phases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "phase"),
    [
        ({"prompt": "x" * 3300, "max_tokens": 900}, Kind.PREFILLING),
        ({"prompt": "x" * 2000, "max_tokens": 100}, Kind.PREFILLING),
        ({"prompt": "x" * 2000, "max_tokens": 400}, Kind.DECODING),
        ({"prompt": "x" * 2400}, Kind.PREFILLING),
        ({"prompt": "x" * 8000, "max_tokens": 100, "priority": RequestPriority.CRITICAL}, Kind.DECODING),
        ({"prompt": "x" * 8000, "max_tokens": 100, "slo_deadline_ms": 50.0}, Kind.DECODING),
        ({"prompt": "x" * 8000, "prefill_completed": True}, Kind.DECODING),
        ({"prompt": None}, Kind.HYBRID),
    ],
)
def test_the_phase_of_a_request(fields: dict[str, Any], phase: Kind) -> None:
    assert PDRoutingStrategy(PDSeparationConfig()).determine_request_phase(wanted(**fields)) is phase


def test_without_separation_every_text_request_is_hybrid_and_vectors_have_no_phase() -> None:
    together = PDRoutingStrategy(PDSeparationConfig(enabled=False))
    assert together.determine_request_phase(wanted(prompt="x" * 8000)) is Kind.HYBRID
    assert together.determine_request_phase(texts()) is None


def test_instances_of_a_phase_are_those_made_for_it_or_else_those_that_do_both() -> None:
    pd = PDRoutingStrategy(PDSeparationConfig())
    pre, dec, general = (
        place(n, instance_type=t) for n, t in zip("pdg", (Kind.PREFILLING, Kind.DECODING, Kind.GENERAL), strict=True)
    )
    assert pd.filter_instances_by_type([pre, dec, general], Kind.PREFILLING) == [pre]
    assert pd.filter_instances_by_type([dec, general], Kind.PREFILLING) == [general]
    assert pd.filter_instances_by_type([pre, dec, general], Kind.HYBRID) == [pre, dec, general]
    assert pd.get_instance_specialization(pre) == {"prefilling": 1.0, "decoding": 0.0}
    busy = place("h", instance_type=Kind.HYBRID, prefilling_active_requests=3, decoding_active_requests=1)
    assert pd.get_instance_specialization(busy) == {"prefilling": 0.8, "decoding": 0.6}


def test_sizes_recommended_fit_the_instances_devices() -> None:
    pd = PDRoutingStrategy(PDSeparationConfig())
    instance = place(
        "a",
        gpu_count=6,
        prefilling_config=PrefillingConfig(tensor_parallel_size=8),
        decoding_config=DecodingConfig(tensor_parallel_size=2, pipeline_parallel_size=8),
    )
    found = pd.recommend_parallelism_config(instance, wanted(prompt="x" * 8000))
    assert found == {"tensor_parallel_size": 4, "pipeline_parallel_size": 1}
    found = pd.recommend_parallelism_config(instance, wanted(), Kind.DECODING)
    assert found == {"tensor_parallel_size": 2, "pipeline_parallel_size": 3}


# --- classifier ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (wanted(" "), ValidationErrorCode.MISSING_REQUEST_ID),
        (wanted(prompt=None), ValidationErrorCode.MISSING_PROMPT),
        (wanted(prompt=["hello"]), ValidationErrorCode.MISSING_PROMPT),
        (texts(embedding_texts=None), ValidationErrorCode.MISSING_EMBEDDING_TEXTS),
        (texts(embedding_texts="one"), ValidationErrorCode.MISSING_EMBEDDING_TEXTS),
        (texts(embedding_texts=[]), ValidationErrorCode.EMPTY_EMBEDDING_TEXTS),
        (texts(embedding_texts=["a", " "]), ValidationErrorCode.EMPTY_EMBEDDING_TEXTS),
        (texts(embedding_batch_size=0), ValidationErrorCode.INVALID_EMBEDDING_BATCH_SIZE),
        (wanted(max_tokens=0), ValidationErrorCode.INVALID_MAX_TOKENS),
        (wanted(temperature=float("nan")), ValidationErrorCode.INVALID_TEMPERATURE),
        (wanted(top_p=0.0), ValidationErrorCode.INVALID_TOP_P),
    ],
)
def test_what_cannot_be_served_is_told_by_code(request_: RequestMetadata, code: ValidationErrorCode) -> None:
    result = create_classifier().validate_request(request_)
    assert (bool(result), result.error_code) == (False, code)
    assert result.error_message


def test_what_is_ambiguous_is_a_warning_or_by_choice_refused() -> None:
    odd = texts(prompt="hello", model_name="m")
    result = create_classifier().validate_request(odd)
    assert result
    assert result.warnings is not None
    assert "embedding_texts" in result.warnings[0]
    strict = create_classifier(strict_validation=True).validate_request(odd)
    assert strict.error_code is ValidationErrorCode.CONFLICTING_REQUEST_TYPE


def test_a_request_is_classified_by_what_it_says_and_brings() -> None:
    classify = create_classifier().classify
    assert classify(wanted()) is RequestType.LLM_CHAT
    assert classify(wanted(request_type=RequestType.LLM_GENERATE)) is RequestType.LLM_GENERATE
    assert classify(texts()) is RequestType.EMBEDDING
    assert classify(wanted(prompt=None, embedding_texts=["a"])) is RequestType.EMBEDDING
    summary = create_classifier().get_request_summary(texts("r", 3, model_name="v"))
    assert (summary["request_type"], summary["embedding_count"], summary["is_valid"]) == ("embedding", 3, True)


def test_compatible_instances_are_those_that_serve_the_kind_special_ones_first() -> None:
    both, special = place("b", instance_type=Kind.LLM_EMBEDDING), embedder("e")
    down, plain = embedder("d", is_healthy=False), place("p")
    found = create_classifier().get_compatible_instances
    assert found(RequestType.EMBEDDING, [both, special, down, plain]) == [special, both]
    assert found(RequestType.EMBEDDING, [both, special, down, plain], include_unavailable=True) == [special, down, both]
    assert found(RequestType.LLM_CHAT, [both, special, plain], prefer_specialized=False) == [both, plain]
