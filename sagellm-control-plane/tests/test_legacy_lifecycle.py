"""Engine servers as processes under SAGE's names."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from conftest import until
from sagellm_control_plane.engine_lifecycle import EngineLifecycleManager, EngineRuntime
from sagellm_control_plane.manager import ControlPlaneManager
from sagellm_control_plane.types import RequestMetadata
from sagellm_protocol import EngineState, Response, SageLLMError

MOCK = ["--engine", "mock"]


@pytest.fixture
async def lifecycle() -> AsyncIterator[EngineLifecycleManager]:
    manager = EngineLifecycleManager(host="127.0.0.1")
    yield manager
    for record in manager.list_engines():
        await asyncio.to_thread(manager.stop_engine, record["engine_id"])


async def reaches(lifecycle: EngineLifecycleManager, engine_id: str, status: str) -> dict[str, Any]:
    await until(lambda: lifecycle.get_engine_status(engine_id)["status"] == status)
    return lifecycle.get_engine_status(engine_id)


async def test_an_engine_is_started_serves_the_plane_and_stops(lifecycle: EngineLifecycleManager) -> None:
    plane = ControlPlaneManager(health_check_interval=0.05)
    await plane.start()
    lifecycle.set_control_plane(plane)
    try:
        engine_id = lifecycle.spawn_engine("m", [], extra_args=MOCK, metadata={"team": "a", "api_key": "k"})
        assert lifecycle.get_engine_status(engine_id)["status"] == "STARTING"
        record = await reaches(lifecycle, engine_id, "RUNNING")
        assert record["env_overrides"] == {"CUDA_VISIBLE_DEVICES": ""}
        assert (record["metadata"], record["runtime"]) == ({"team": "a"}, "llm")
        assert lifecycle.reserved_ports == {record["port"]}
        assert await lifecycle.health_check_all() == {engine_id: True}
        [found] = [one for one in lifecycle.discover_running_engines() if one["engine_id"] == engine_id]
        assert (found["pid"], found["port"]) == (record["pid"], record["port"])
        await until(lambda: plane.get_engine_state(engine_id) is EngineState.READY)
        await plane.submit_request(RequestMetadata("r", prompt="hello", max_tokens=4, model_name="m"))
        assert isinstance(await plane.get_response("r"), Response)
        with pytest.raises(ValueError, match="is another engine's"):
            lifecycle.spawn_engine("m", [], record["port"], extra_args=MOCK)
        assert await asyncio.to_thread(lifecycle.stop_engine, engine_id, drain=True)
        record = lifecycle.get_engine_status(engine_id)
        assert (record["status"], record["last_error"]) == ("STOPPED", None)
        assert plane.get_engine_info(engine_id) is None
        assert not lifecycle.stop_engine(engine_id)
        assert lifecycle.reserved_ports == set()
        assert not await lifecycle.health_check(engine_id)
        assert lifecycle.prune_stopped_engines() == 1
        with pytest.raises(ValueError, match="was started here"):
            lifecycle.get_engine_status(engine_id)
    finally:
        await plane.stop()


async def test_an_engine_that_fails_says_why_and_is_kept_within_bounds() -> None:
    lifecycle = EngineLifecycleManager(host="127.0.0.1", max_stopped_engines=1)
    first = lifecycle.spawn_engine("m", [0, 1], extra_args=["--engine", "made-up"])
    record = await reaches(lifecycle, first, "FAILED")
    assert "made-up" in record["last_error"]
    assert record["last_exit_code"] == 1
    assert record["env_overrides"] == {"CUDA_VISIBLE_DEVICES": "0,1"}
    second = lifecycle.spawn_engine("m", [], extra_args=MOCK, engine_kind=EngineRuntime.EMBEDDING)
    record = await reaches(lifecycle, second, "RUNNING")
    os.kill(record["pid"], signal.SIGKILL)
    assert (await reaches(lifecycle, second, "FAILED"))["last_exit_code"] == -signal.SIGKILL
    third = lifecycle.spawn_engine("m", [], extra_args=MOCK)
    assert [one["engine_id"] for one in lifecycle.list_engines()] == [second, third]
    assert await asyncio.to_thread(lifecycle.stop_engine, third)


def test_what_cannot_be_started_is_refused() -> None:
    with pytest.raises(ValueError, match="tensor_parallel_size"):
        EngineLifecycleManager().spawn_engine("m", [], tensor_parallel_size=0)
    with pytest.raises(ValueError, match="--made-up"):
        EngineLifecycleManager().spawn_engine("m", [], extra_args=["--made-up"])
    with pytest.raises(SageLLMError, match="cannot be run"):
        EngineLifecycleManager(python_executable="/nonexistent/python").spawn_engine("m", [], extra_args=MOCK)
