"""Adapters through the plane: found by name, loaded on every engine of their model, and there again after a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import ask, until
from sagellm_control_plane.remote.client import RemoteEngine
from sagellm_control_plane.service import ControlPlaneService
from sagellm_protocol import AdapterSpec, EndEvent, EngineSpec, ErrorCode, ErrorEvent, SageLLMError
from sagellm_protocol.testing.mock_engine import MockEngine
from serving import served

Planes = Callable[..., ControlPlaneService]


def adaptable(root: Path, model: str = "m", **fields: Any) -> EngineSpec:
    return EngineSpec(engine="mock", model=model, adapter_root=str(root), **fields)


async def last(plane: ControlPlaneService, **fields: Any) -> Any:
    return [event async for event in plane.submit(ask(**fields))][-1]


async def test_an_adapter_is_a_model_with_a_parent(planes: Planes, tmp_path: Path) -> None:
    plane = planes()
    await plane.start_engine(adaptable(tmp_path, adapters={"one": "/one"}))
    models = {model.name: model for model in await plane.models()}
    assert {name: model.parent for name, model in models.items()} == {"m": None, "one": "m"}
    assert isinstance(await last(plane, model="one"), EndEvent)
    assert isinstance(await last(plane, model="m", adapter="one"), EndEvent)
    refused = await last(plane, model="m", adapter="two")
    assert isinstance(refused, ErrorEvent)
    assert (refused.error.code, refused.error.param) == (ErrorCode.MODEL_NOT_FOUND, "adapter")
    assert "adapters: one" in refused.error.message


async def test_requests_go_to_the_engines_that_have_their_adapter(planes: Planes, tmp_path: Path) -> None:
    plane = planes(routing="round_robin")
    await plane.start_engine(adaptable(tmp_path))
    has = await plane.start_engine(adaptable(tmp_path, adapters={"one": "/one"}))
    for _ in range(4):
        assert isinstance(await last(plane, model="m", adapter="one"), EndEvent)
    engine = plane.fleet.member(has.info.engine_id).engine
    assert engine is not None
    assert (await engine.stats()).completed == 4


async def test_loading_serves_through_every_engine_of_the_model(planes: Planes, tmp_path: Path) -> None:
    plane = planes()
    for _ in range(2):
        await plane.start_engine(adaptable(tmp_path))
    await plane.load_adapter(AdapterSpec(name="one", path="one"))
    assert {model.name: model.engines for model in await plane.models()} == {"m": 2, "one": 2}
    assert isinstance(await last(plane, model="one"), EndEvent)
    await plane.unload_adapter("one")
    assert [model.name for model in await plane.models()] == ["m"]
    gone = await last(plane, model="one")
    assert gone.error.code is ErrorCode.MODEL_NOT_FOUND
    with pytest.raises(SageLLMError, match="no adapter 'one' is loaded; there are: none"):
        await plane.unload_adapter("one")


async def test_where_one_engine_refuses_none_serves_it(planes: Planes, tmp_path: Path) -> None:
    plane = planes()
    await plane.start_engine(adaptable(tmp_path))
    await plane.start_engine(adaptable(tmp_path / "elsewhere"))
    with pytest.raises(SageLLMError, match="not within"):
        await plane.load_adapter(AdapterSpec(name="one", path=str(tmp_path / "one")))
    assert [model.name for model in await plane.models()] == ["m"]


async def test_of_several_models_the_one_meant_is_to_be_named(planes: Planes, tmp_path: Path) -> None:
    plane = planes()
    for model in ("m", "other"):
        await plane.start_engine(adaptable(tmp_path, model))
    with pytest.raises(SageLLMError, match="say which model the adapter is for") as caught:
        await plane.load_adapter(AdapterSpec(name="one", path="one"))
    assert caught.value.param == "base"
    await plane.load_adapter(AdapterSpec(name="one", path="one", base="other"))
    assert {model.name: model.parent for model in await plane.models()}["one"] == "other"
    with pytest.raises(SageLLMError, match="is a model's name"):
        await plane.load_adapter(AdapterSpec(name="m", path="one", base="other"))


async def test_an_engine_that_is_started_anew_has_its_adapters_again(planes: Planes, tmp_path: Path) -> None:
    plane = planes()
    record = await plane.start_engine(adaptable(tmp_path))
    await plane.load_adapter(AdapterSpec(name="one", path="one"))
    member = plane.fleet.member(record.info.engine_id)
    before = member.engine
    assert isinstance(before, MockEngine)
    before.die()
    await until(lambda: member.engine is not before and member.ready)
    assert isinstance(await last(plane, model="one"), EndEvent)


async def test_an_attached_engine_is_loaded_and_its_own_changes_are_noticed(planes: Planes, tmp_path: Path) -> None:
    engine = MockEngine(adaptable(tmp_path))
    await engine.start()
    async with served(engine) as url:
        plane = planes()
        await plane.attach_engine(url)
        await plane.load_adapter(AdapterSpec(name="one", path="one"))
        assert isinstance(await last(plane, model="one"), EndEvent)
        await engine.load_adapter(AdapterSpec(name="two", path="two"))
        await until(lambda: plane.fleet.serving("two"))
        await engine.unload_adapter("one")
        await until(lambda: not plane.fleet.serving("one"))
        await plane.stop()
    await engine.stop()


async def test_a_server_of_an_engine_without_adapters_says_so(tmp_path: Path) -> None:
    engine = MockEngine(EngineSpec(engine="mock", model="m"))
    await engine.start()
    async with served(engine) as url:
        client = RemoteEngine(url)
        await client.start()
        with pytest.raises(SageLLMError, match="adapter_root") as caught:
            await client.load_adapter(AdapterSpec(name="one", path="one"))
        assert caught.value.code is ErrorCode.PERMISSION_DENIED
        await client.stop()
    await engine.stop()
