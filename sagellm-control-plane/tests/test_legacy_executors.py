"""Executors under SAGE's names: real HTTP to servers that speak OpenAI's API, and engines of this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conftest import until
from legacy_subjects import place, texts, wanted
from openai_server import OpenAIServer, nobody
from sagellm_control_plane.executors.base import ExecutionCoordinatorBase
from sagellm_control_plane.executors.embedding_executor import (
    EmbeddingExecutor,
    EmbeddingInstanceUnavailableError,
    EmbeddingRequestError,
    EmbeddingTimeoutError,
)
from sagellm_control_plane.executors.http_client import HttpExecutionCoordinator
from sagellm_control_plane.executors.local_async import LocalAsyncExecutionCoordinator
from sagellm_control_plane.metrics_collector import MetricsCollector
from sagellm_control_plane.types import (
    ExecutionInstance,
    ParallelismType,
    RequestMetadata,
    RequestType,
    SchedulingDecision,
)
from sagellm_protocol import ErrorCode, SageLLMError


def decision(request: RequestMetadata, instance: ExecutionInstance) -> SchedulingDecision:
    return SchedulingDecision(request.request_id, instance.instance_id, ParallelismType.TENSOR_PARALLEL, None, None)


async def execute(
    executor: ExecutionCoordinatorBase, instance: ExecutionInstance, request: RequestMetadata | None = None
) -> dict[str, Any]:
    asked = request or wanted()
    return await executor.execute_request(asked, instance, decision(asked, instance))


class Manager:
    def __init__(self) -> None:
        self.told: list[tuple[str, list[str]]] = []

    async def on_instance_failure(self, instance_id: str, failed: list[tuple[str, RequestMetadata]]) -> None:
        self.told.append((instance_id, [request_id for request_id, _ in failed]))


@pytest.fixture
async def server() -> AsyncIterator[OpenAIServer]:
    async with OpenAIServer() as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[HttpExecutionCoordinator]:
    executor = HttpExecutionCoordinator(timeout=20)
    await executor.initialize()
    yield executor
    await executor.shutdown_all()


def at(server: OpenAIServer | int, instance_id: str = "a", **fields: Any) -> ExecutionInstance:
    instance = place(instance_id, **fields)
    instance.port = server if isinstance(server, int) else server.port
    return instance


async def test_a_chat_request_is_carried_out_over_http(http: HttpExecutionCoordinator, server: OpenAIServer) -> None:
    instance = at(server, metadata={"api_key": "k"})
    http.register_instance(instance)
    request = wanted("r", max_tokens=7, temperature=0.5)
    answer = await execute(http, instance, request)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "one two three"}
    assert (answer["request_id"], answer["instance_id"], answer["object"]) == ("r", "a", "chat.completion")
    assert answer["latency_ms"] > 0
    [call] = server.calls
    assert call["messages"] == [{"role": "user", "content": "hello"}]
    assert (call["max_tokens"], call["temperature"], call["model"]) == (7, 0.5, "m")
    assert server.keys == ["Bearer k"]
    assert request.tokens_generated == 3
    assert request.latency_ms is not None
    assert instance.active_requests == 0


async def test_completions_and_vectors_are_asked_for_in_their_own_words(
    http: HttpExecutionCoordinator, server: OpenAIServer
) -> None:
    instance = at(server)
    answer = await execute(http, instance, wanted(request_type=RequestType.LLM_GENERATE))
    assert answer["choices"][0]["text"] == "one two three"
    answer = await execute(http, instance, texts(count=2))
    assert len(answer["data"]) == 2


async def test_figures_are_those_of_what_was_carried_out(http: HttpExecutionCoordinator, server: OpenAIServer) -> None:
    instance = at(server)
    http.register_instance(instance)
    for _ in range(3):
        await execute(http, instance)
    server.refusals = [400]
    with pytest.raises(SageLLMError, match="refused here") as refusal:
        await execute(http, instance)
    assert refusal.value.code is ErrorCode.INVALID_REQUEST
    assert instance.is_healthy
    metrics = http.get_metrics()
    assert (metrics.total_requests, metrics.completed_requests, metrics.failed_requests) == (4, 3, 1)
    assert metrics.p99_latency_ms is not None
    assert metrics.avg_gpu_utilization is None
    told = http.get_instance_metrics("a")
    assert told is not None
    assert (told["total_requests_processed"], told["failed_requests"]) == (4, 1)
    assert http.get_instance_metrics("b") is None
    collected = await MetricsCollector(executor_coordinator=http).collect_metrics()
    assert (collected.num_requests, collected.avg_isl, collected.avg_osl) == (3, 5, 3)
    assert collected.avg_ttft_ms is not None
    assert collected.is_valid()
    assert (collected.num_prefill_instances, collected.num_decode_instances) == (1, 1)
    assert not (await MetricsCollector().collect_metrics()).is_valid()


async def test_an_instance_that_does_not_answer_is_unhealthy_and_its_request_goes_to_the_manager(
    http: HttpExecutionCoordinator,
) -> None:
    manager = Manager()
    http.set_manager_callback(manager)
    with nobody() as port:
        instance = at(port)
        with pytest.raises(SageLLMError) as failure:
            await execute(http, instance, wanted("r"))
    assert failure.value.code is ErrorCode.UNAVAILABLE
    assert not instance.is_healthy
    assert manager.told == [("a", ["r"])]


async def test_a_stream_that_breaks_off_is_no_answer(http: HttpExecutionCoordinator, server: OpenAIServer) -> None:
    server.breaks_off = True
    with pytest.raises(SageLLMError, match="before the answer was complete") as failure:
        await execute(http, at(server))
    assert failure.value.code is ErrorCode.ENGINE_FAILED


async def test_health_is_what_the_server_says(http: HttpExecutionCoordinator, server: OpenAIServer) -> None:
    with nobody() as port:
        well, gone = at(server, is_healthy=False), at(port, "b")
        await http.add_instance(well)
        await http.add_instance(gone)
        assert await http.health_check_all() == {"a": True, "b": False}
        assert http.get_available_instances() == [well]
        info = await http.get_instance_info(well)
        assert info is not None
        assert (info["models"], info["serves_model"]) == (["m"], True)
        assert await http.get_instance_info(gone) is None
    server.well = False
    assert not await http.health_check(well)


async def test_an_instance_goes_once_it_has_finished(http: HttpExecutionCoordinator, server: OpenAIServer) -> None:
    instance = at(server)
    http.register_instance(instance)
    server.gate.clear()
    running = asyncio.create_task(execute(http, instance))
    await until(lambda: server.calls)
    removal = asyncio.create_task(http.remove_instance_gracefully("a"))
    await until(lambda: not instance.is_available)
    assert http.get_instance("a") is instance
    server.gate.set()
    await removal
    assert http.get_all_instances() == []
    assert (await running)["choices"]


async def test_one_of_the_same_id_is_refused(http: HttpExecutionCoordinator) -> None:
    http.register_instance(place("a"))
    with pytest.raises(ValueError, match="'a' is registered already"):
        http.register_instance(place("a"))


async def test_engines_of_this_process_carry_requests_out() -> None:
    executor = LocalAsyncExecutionCoordinator()
    instance = place("a", metadata={"engine": "mock"})
    try:
        executor.register_instance(instance)
        assert await executor.get_instance_info(instance) is None
        request = wanted(max_tokens=4)
        answer = await execute(executor, instance, request)
        assert answer["usage"]["completion_tokens"] == request.tokens_generated > 0
        assert answer["choices"][0]["message"]["content"]
        vectors = await execute(executor, instance, texts(count=3, embedding_batch_size=2))
        assert [one["index"] for one in vectors["data"]] == [0, 1, 2]
        info = await executor.get_instance_info(instance)
        assert info is not None
        assert info["engine"] == "mock"
        assert await executor.health_check_all() == {"a": True}
        engine = await executor.get_engine("a")
        await executor.shutdown_engine("a")
        assert await executor.get_engine("a") is not engine
        assert await executor.get_engine("b") is None
        [first, _] = executor.served_within(60)
        assert first.ttft_s is not None
    finally:
        await executor.shutdown_all()


async def test_an_engine_that_does_not_start_says_why() -> None:
    executor = LocalAsyncExecutionCoordinator()
    instance = place("a", metadata={"engine": "made-up"})
    with pytest.raises(SageLLMError, match="made-up"):
        await execute(executor, instance)
    await executor.shutdown_all()


# --- embeddings ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def embedding() -> AsyncIterator[EmbeddingExecutor]:
    executor = EmbeddingExecutor(timeout=20, max_retries=2, retry_delay=0.0)
    yield executor
    await executor.cleanup()


async def test_texts_are_embedded_in_their_order(embedding: EmbeddingExecutor, server: OpenAIServer) -> None:
    result = await embedding.execute_embedding(["a", "bbb"], "v", "127.0.0.1", server.port, "r")
    assert result.embeddings == [[1.0, 1.0], [3.0, 1.0]]
    assert (result.request_id, result.embedding_count, result.embedding_dimension) == ("r", 2, 2)
    assert result.usage == {"prompt_tokens": 2, "total_tokens": 2}
    assert await embedding.health_check("127.0.0.1", server.port)


async def test_many_texts_are_embedded_in_batches(embedding: EmbeddingExecutor, server: OpenAIServer) -> None:
    many = ["x" * size for size in range(1, 6)]
    result = await embedding.execute_embedding_batch(many, "v", "127.0.0.1", server.port, batch_size=2)
    assert [vector[0] for vector in result.embeddings] == [1, 2, 3, 4, 5]
    assert [len(call["input"]) for call in server.calls] == [2, 2, 1]
    assert result.usage["total_tokens"] == 5
    metrics = embedding.get_metrics()
    assert (metrics.total_requests, metrics.total_texts_embedded, metrics.success_rate) == (3, 5, 1.0)
    embedding.reset_metrics()
    assert embedding.get_metrics().total_requests == 0


async def test_a_busy_server_is_asked_again_and_a_refusal_is_not(
    embedding: EmbeddingExecutor, server: OpenAIServer
) -> None:
    server.refusals = [503, 429]
    assert (await embedding.execute_embedding(["a"], "v", "127.0.0.1", server.port)).success
    assert embedding.get_metrics().retries_total == 2
    server.refusals = [400]
    with pytest.raises(EmbeddingRequestError, match="refused here") as refusal:
        await embedding.execute_embedding(["a"], "v", "127.0.0.1", server.port)
    assert refusal.value.status_code == 400
    assert embedding.get_metrics().failed_requests == 1


async def test_nobody_and_silence_are_told_apart(embedding: EmbeddingExecutor, server: OpenAIServer) -> None:
    with nobody() as port, pytest.raises(EmbeddingInstanceUnavailableError):
        await embedding.execute_embedding(["a"], "v", "127.0.0.1", port)
    server.gate.clear()
    impatient = EmbeddingExecutor(timeout=0.1, max_retries=0)  # type: ignore[arg-type]
    with pytest.raises(EmbeddingTimeoutError, match=r"within 0\.1 s"):
        await impatient.execute_embedding(["a"], "v", "127.0.0.1", server.port)
    await impatient.cleanup()


async def test_what_cannot_be_embedded_is_refused(embedding: EmbeddingExecutor) -> None:
    with pytest.raises(ValueError, match="texts"):
        await embedding.execute_embedding([], "v", "127.0.0.1", 1)
    with pytest.raises(ValueError, match="base64"):
        await embedding.execute_embedding(["a"], "v", "127.0.0.1", 1, encoding_format="base64")
