"""The manager that SAGE knows, over mock engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conftest import mock, until
from sagellm_control_plane.manager import ControlPlaneManager
from sagellm_control_plane.types import (
    ExecutionInstance,
    ExecutionInstanceType,
    ParallelismType,
    PDSeparationConfig,
    RequestMetadata,
    RequestPriority,
    RequestStatus,
    RequestType,
)
from sagellm_protocol import EngineState, ErrorCode, Response, SageLLMError
from sagellm_protocol.testing.mock_engine import MockEngine
from serving import served

MOCK = ["--engine", "mock"]


@pytest.fixture
async def manager() -> AsyncIterator[ControlPlaneManager]:
    manager = ControlPlaneManager(mode="local", health_check_interval=0.05, restart_backoff_base=0.01)
    await manager.start()
    yield manager
    await manager.stop()


async def ready(manager: ControlPlaneManager, engine_id: str) -> None:
    await until(lambda: manager.get_engine_state(engine_id) is EngineState.READY)


async def serve(manager: ControlPlaneManager, **options: Any) -> str:
    told = manager.request_engine_startup("m", extra_spawn_args=MOCK, **options)
    engine_id: str = told["engine_id"]
    await ready(manager, engine_id)
    return engine_id


def asked(request_id: str = "r", **fields: Any) -> RequestMetadata:
    return RequestMetadata(
        **{"request_id": request_id, "prompt": "hello", "max_tokens": 8, "model_name": "m", **fields}
    )


async def test_the_default_constructor_serves_an_engine_in_a_process_of_its_own() -> None:
    manager = ControlPlaneManager()
    await manager.start()
    try:
        told = manager.request_engine_startup("m", extra_spawn_args=MOCK, engine_label="first", metadata={"a": 1})
        assert told["status"] == "STARTING"
        assert told["engine_id"] == told["instance_id"]
        await ready(manager, told["engine_id"])
        [engine] = manager.get_cluster_status()["engines"]
        assert engine["pid"] > 0
        assert engine["port"] == told["port"] > 0
        assert engine["engine_label"] == "first"
        assert await manager.submit_request(asked()) == "r"
        response = await manager.get_response("r")
        assert isinstance(response, Response)
        assert manager.get_metrics().completed_requests == 1
        down = await asyncio.to_thread(manager.request_engine_shutdown, told["engine_id"])
        assert (down["stopped"], down["status"], down["released"]) == (True, "STOPPED", True)
        assert manager.get_engine_state(told["engine_id"]) is EngineState.STOPPED
    finally:
        await manager.stop()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable_auto_scaling", True),
        ("pd_config", PDSeparationConfig()),
        ("autoscaler_config", object()),
    ],
)
def test_what_is_still_to_come_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SageLLMError, match=name) as refusal:
        ControlPlaneManager(**{name: value})  # type: ignore[arg-type]
    assert refusal.value.code is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize(
    "bad", [{"scheduling_policy": "made-up"}, {"routing_strategy": "made-up"}, {"mode": "made-up"}]
)
def test_what_does_not_exist_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(SageLLMError, match="made-up") as refusal:
        ControlPlaneManager(**bad)
    assert refusal.value.code is ErrorCode.INVALID_REQUEST


async def test_a_registered_engine_is_starting_until_it_answers(manager: ControlPlaneManager) -> None:
    engine = MockEngine(mock())
    async with served(engine) as url:
        port = int(url.rsplit(":", 1)[1])
        info = manager.register_engine("e", "m", "0.0.0.0", port, metadata={"k": 1})
        assert info.state is EngineState.STARTING
        assert (info.host, info.metadata) == ("localhost", {"k": 1})
        with pytest.raises(ValueError, match="registered already"):
            manager.register_engine("e", "m", "localhost", port)
        await ready(manager, "e")
        [instance] = manager.get_instances()
        assert (instance.instance_id, instance.instance_type) == ("e", ExecutionInstanceType.GENERAL)
        assert instance.can_accept_request
        backends = manager.get_registered_backends()
        assert backends["healthy_llm_backends"] == backends["total_llm_backends"] == 1
        assert backends["llm_backends"][0]["base_url"] == f"http://localhost:{port}"
        await manager.submit_request(asked(model_name=None))
        await manager.get_response("r")
        gone = manager.unregister_engine("e")
        assert gone is not None
        assert manager.get_engine_info("e") is None
        assert manager.unregister_engine("e") is None


async def test_engines_registered_before_the_start_are_reached_after_it() -> None:
    async with served(MockEngine(mock())) as url:
        manager = ControlPlaneManager(health_check_interval=0.05)
        manager.register_instance(
            ExecutionInstance(instance_id="e", host="127.0.0.1", port=int(url.rsplit(":", 1)[1]), model_name="m")
        )
        assert manager.get_engine_state("e") is EngineState.STARTING
        await manager.start()
        await ready(manager, "e")
        await manager.stop()


async def test_an_engine_that_is_not_there_turns_to_error_and_keeps_being_tried(manager: ControlPlaneManager) -> None:
    manager.register_engine("e", "m", "127.0.0.1", 9)
    await until(lambda: manager.get_engine_state("e") is EngineState.ERROR)
    assert [info.engine_id for info in manager.list_registered_engines(EngineState.ERROR)] == ["e"]
    assert not manager.get_instances()[0].is_healthy


async def test_a_request_goes_from_queued_to_completed(manager: ControlPlaneManager) -> None:
    await serve(manager)
    metadata = asked(priority=RequestPriority.HIGH)
    await manager.submit_request(metadata)
    assert metadata.queue_time is not None
    assert await manager.get_request_status("r") in (RequestStatus.QUEUED, RequestStatus.RUNNING)
    await manager.get_response("r")
    assert await manager.get_request_status("r") is RequestStatus.COMPLETED
    assert metadata.tokens_generated == 8
    assert metadata.latency_ms is not None
    assert metadata.queue_wait_ms is not None
    assert await manager.get_request_status("unknown") is None


async def test_a_running_request_can_be_cancelled(manager: ControlPlaneManager) -> None:
    engine = MockEngine(mock(itl_ms=5.0))
    async with served(engine) as url:
        manager.register_engine("e", "m", "127.0.0.1", int(url.rsplit(":", 1)[1]))
        await ready(manager, "e")
        await manager.submit_request(asked(max_tokens=5000))
        await until(lambda: manager.get_metrics().active_requests == 1)
        assert await manager.cancel_request("r")
        with pytest.raises(SageLLMError):
            await manager.get_response("r")
        assert await manager.get_request_status("r") is RequestStatus.CANCELLED
        assert not await manager.cancel_request("r")
        assert not await manager.cancel_request("unknown")


async def test_embeddings_are_asked_for_in_batches(manager: ControlPlaneManager) -> None:
    await serve(manager, engine_kind="embedding")
    request = asked(
        request_type=RequestType.EMBEDDING, embedding_texts=["a", "b", "c"], embedding_model="m", embedding_batch_size=2
    )
    await manager.submit_request(request)
    response = await manager.get_response("r")
    assert isinstance(response, tuple)
    assert [len(batch.vectors) for batch in response] == [2, 1]
    assert manager.get_registered_backends()["total_embedding_backends"] == 1


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"prompt": None}, "prompt"),
        ({"temperature": -1.0}, "temperature"),
        ({"request_type": RequestType.EMBEDDING}, "embedding_texts"),
        ({"parallelism_hint": ParallelismType.HYBRID}, "parallelism_hint"),
        ({"billing_tier": "gold"}, "billing_tier"),
        ({"can_be_preempted": False}, "can_be_preempted"),
    ],
)
async def test_a_request_that_cannot_be_honoured_is_refused_by_name(
    manager: ControlPlaneManager, fields: dict[str, Any], name: str
) -> None:
    await serve(manager)
    with pytest.raises(SageLLMError, match=name):
        await manager.submit_request(asked(**fields))
    assert manager.get_metrics().total_requests == 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size"),
        ({"pipeline_parallel_size": 0}, "pipeline_parallel_size"),
        ({"extra_spawn_args": ["--made-up", "1"]}, "made-up"),
        ({"extra_spawn_args": ["--max-num-seqs", "x"]}, "max-num-seqs"),
        ({"engine_kind": "made-up"}, "engine_kind"),
        ({"max_concurrent_requests": 0}, "max_concurrent_requests"),
    ],
)
def test_bad_values_of_a_start_are_value_errors(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ControlPlaneManager().request_engine_startup("m", **options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"engine_kind": "finetune"}, "engine_kind"),
        ({"instance_type": ExecutionInstanceType.PREFILLING}, "instance_type"),
        ({"required_memory_gb": 4.0}, "required_memory_gb"),
        ({"port": 1234}, "port"),
    ],
)
async def test_values_of_a_start_that_are_to_come_are_refused(
    manager: ControlPlaneManager, options: dict[str, Any], name: str
) -> None:
    with pytest.raises(SageLLMError, match=name) as refusal:
        manager.request_engine_startup("m", **options)
    assert refusal.value.code is ErrorCode.UNSUPPORTED
    with pytest.raises(SageLLMError, match="fine-tuning"):
        manager.start_finetune_engine("m", "data", "out")


async def test_an_engine_drains_and_stops_gracefully(manager: ControlPlaneManager) -> None:
    engine_id = await serve(manager)
    assert manager.start_engine_drain(engine_id)
    assert not manager.start_engine_drain(engine_id)
    assert manager.check_engine_drain_complete(engine_id)
    assert manager.update_engine_active_requests(engine_id, 2)
    assert not manager.check_engine_drain_complete(engine_id)
    assert await manager.stop_engine_gracefully(engine_id)
    assert manager.get_engine_state(engine_id) is EngineState.STOPPED
    assert not await manager.stop_engine_gracefully(engine_id)
    assert manager.prune_stopped_engines() == 1
    assert manager.get_engine_state(engine_id) is None


async def test_shutting_down_an_unknown_engine_fails(manager: ControlPlaneManager) -> None:
    assert manager.request_engine_shutdown("made-up") == {"engine_id": "made-up", "stopped": False, "status": "FAILED"}


async def test_from_its_own_loop_a_shutdown_is_seen_at_once(manager: ControlPlaneManager) -> None:
    engine_id = await serve(manager)
    told = manager.request_engine_shutdown(engine_id)
    assert (told["stopped"], told["status"], told["released"]) == (True, "STOPPED", False)
    with pytest.raises(SageLLMError):
        await manager.submit_request(asked())


async def test_reported_failures_make_an_engine_dead_and_it_is_started_again(manager: ControlPlaneManager) -> None:
    engine_id = await serve(manager)
    assert manager.record_engine_failure(engine_id) == 1
    assert manager.record_engine_heartbeat(engine_id)
    assert manager.record_engine_failure(engine_id) == 1
    assert manager.record_engine_failure(engine_id) == 2
    assert manager.get_engine_state(engine_id) is EngineState.ERROR
    await ready(manager, engine_id)
    health = manager.get_engine_health_status()
    assert health["max_restart_attempts"] == 3
    assert health["engines"][engine_id]["restart_count"] == 1
    assert manager.record_engine_failure("made-up") == 0


async def test_states_move_as_an_engines_life_allows(manager: ControlPlaneManager) -> None:
    engine_id = await serve(manager)
    assert manager.update_engine_state(engine_id, EngineState.DRAINING)
    assert manager.update_engine_state(engine_id, EngineState.READY)
    assert not manager.update_engine_state(engine_id, EngineState.STARTING)
    assert manager.update_engine_state(engine_id, EngineState.STOPPED)
    assert not manager.update_engine_state(engine_id, EngineState.READY)
    assert not manager.update_engine_state("made-up", EngineState.READY)


async def test_a_failed_instances_requests_are_taken_elsewhere(manager: ControlPlaneManager) -> None:
    first, _ = await serve(manager), await serve(manager)
    await manager.on_instance_failure(first, [("lost", asked("lost"))])
    assert isinstance(await manager.get_response("lost"), Response)


async def test_what_was_not_measured_is_none_and_never_zero(manager: ControlPlaneManager) -> None:
    metrics = manager.get_metrics()
    assert metrics.avg_latency_ms is metrics.avg_gpu_utilization is metrics.total_cost is None
    assert metrics.slo_compliance_rate is None
    engine_id = await serve(manager)
    await manager.submit_request(asked(slo_deadline_ms=10_000.0))
    await manager.get_response("r")
    metrics = manager.get_metrics()
    assert metrics.p99_latency_ms is not None
    assert metrics.p99_latency_ms > 0
    assert metrics.slo_compliance_rate == 1.0
    scheduling = manager.get_scheduling_metrics()
    assert scheduling.policy_name == "adaptive"
    assert scheduling.slo_compliance_by_priority == {"NORMAL": 1.0}
    assert scheduling.prediction_accuracy_rate is None
    detailed = manager.get_instance_metrics_detailed(engine_id)
    assert detailed is not None
    assert detailed.total_requests_processed == 1
    assert manager.get_all_instance_metrics().keys() == {engine_id}
    assert (manager.get_instance_metrics(engine_id) or {})["instance_id"] == engine_id
    assert manager.get_instance_metrics("made-up") is None


async def test_the_policy_can_be_changed_while_requests_wait(manager: ControlPlaneManager) -> None:
    manager.update_policy("fifo")
    assert manager.get_status()["scheduling_policy"] == "fifo"
    for name in ("aegaeon", "hybrid"):
        manager.update_policy(name)
        assert manager.get_status()["scheduling_policy"] == name
    with pytest.raises(SageLLMError, match=r"made-up.*aegaeon"):
        manager.update_policy("made-up")
    assert manager.get_autoscaler_status() == {"enabled": False, "running": False}


async def test_status_has_what_callers_read(manager: ControlPlaneManager) -> None:
    await serve(manager)
    cluster = manager.get_cluster_status()
    assert cluster.keys() >= {"control_plane", "gpu", "engines", "managed_instances", "resource_reservations"}
    assert cluster["control_plane"]["running"]
    assert cluster["managed_instances"][0].keys() >= {
        *("instance_id", "model_name", "host", "port", "instance_type", "active_requests"),
        *("max_concurrent_requests", "is_available", "is_healthy", "metadata"),
    }
    assert cluster["engines"][0].keys() >= {
        *("engine_id", "instance_id", "model_id", "host", "port", "gpu_ids", "tensor_parallel_size"),
        *("pipeline_parallel_size", "memory_per_gpu_gb", "engine_label", "engine_kind", "status", "uptime_seconds"),
    }


async def test_at_most_fifty_stopped_engines_are_kept(manager: ControlPlaneManager) -> None:
    for i in range(60):
        manager.register_engine(f"e{i}", "m", "127.0.0.1", 9)
        manager.request_engine_shutdown(f"e{i}")
    assert len(manager.list_registered_engines(EngineState.STOPPED)) == 50
