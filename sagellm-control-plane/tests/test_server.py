"""Starting an engine server: ports, failures, names."""

from __future__ import annotations

import asyncio
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import sagellm_control_plane
from conftest import mock
from sagellm_control_plane import policies, routing
from sagellm_control_plane.remote.client import RemoteEngine
from sagellm_control_plane.remote.server import bind, serve_engine, url_of
from sagellm_control_plane.settings import PlaneSettings
from sagellm_protocol import ErrorCode, SageLLMError
from sagellm_protocol.testing.mock_engine import MockEngine
from serving import served


async def test_a_port_in_use_is_told_before_anything_loads() -> None:
    listener = bind("127.0.0.1", 0)
    try:
        with pytest.raises(SageLLMError, match="cannot listen") as refusal:
            await serve_engine(mock(start_delay_s=600), port=listener.getsockname()[1])
        assert refusal.value.code is ErrorCode.CONFLICT
    finally:
        listener.close()


@pytest.mark.parametrize(("host", "port"), [("made-up.invalid", 0), ("127.0.0.1", 70000), ("203.0.113.1", 0)])
def test_an_address_that_cannot_be_bound_is_refused(host: str, port: int) -> None:
    with pytest.raises(SageLLMError, match="cannot listen") as refusal:
        bind(host, port)
    assert refusal.value.code is ErrorCode.INVALID_REQUEST


async def test_an_engine_that_does_not_start_ends_the_server_with_its_reason() -> None:
    with pytest.raises(SageLLMError, match="the dog ate it"):
        await asyncio.wait_for(serve_engine(mock(fail_start="the dog ate it"), port=0), 30)


@pytest.mark.parametrize("url", ["localhost:8900", "ftp://host", "", "http://"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SageLLMError, match="http://host:8900"):
        RemoteEngine(url)


def test_every_name_that_is_offered_can_be_had() -> None:
    for name in sagellm_control_plane.__all__:
        assert getattr(sagellm_control_plane, name) is not None
    with pytest.raises(AttributeError):
        _ = sagellm_control_plane.made_up


def test_every_setting_policy_and_router_is_documented() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(\w+)`", readme))
    assert {field.name for field in fields(PlaneSettings)} | set(policies.TABLE) | set(routing.TABLE) <= documented


async def test_a_server_keeps_idle_connections_longer_than_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    idle: list[int] = []

    class Noted(uvicorn.Config):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            idle.append(self.timeout_keep_alive)

    monkeypatch.setattr(uvicorn, "Config", Noted)
    with pytest.raises(SageLLMError):
        await serve_engine(mock(fail_start="enough"), port=0)
    async with served(MockEngine(mock())) as url:
        engine = RemoteEngine(url)
        await engine.start()
        assert engine._session is not None
        assert engine._session.connector is not None
        assert engine._session.connector._keepalive_timeout < idle[0]  # type: ignore[attr-defined]
        await engine.stop()


async def _refusal(url: str, api_key: str | None = None) -> str:
    engine = RemoteEngine(url, api_key=api_key)
    try:
        with pytest.raises(SageLLMError) as refusal:
            await engine.start()
    finally:
        await engine.stop()
    return refusal.value.message


async def test_a_wrong_key_is_told_with_the_address_and_the_way_out() -> None:
    async with served(MockEngine(mock()), api_key="s3cret") as url:
        for key, given in ((None, "none"), ("wrong", "another")):
            told = await _refusal(url, key)
            assert url in told
            assert f"given {given}" in told
            assert "--attach-key" in told


async def test_an_engine_that_cannot_be_reached_is_told_in_the_systems_words() -> None:
    listener = bind("127.0.0.1", 0)
    url = url_of(listener)
    listener.close()
    assert (await _refusal(url)).endswith(": Connection refused")
