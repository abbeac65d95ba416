"""Starting an engine server: ports, failures, names."""

from __future__ import annotations

import asyncio

import pytest

import sagellm_control_plane
from conftest import mock
from sagellm_control_plane.remote.client import RemoteEngine
from sagellm_control_plane.remote.server import bind, serve_engine
from sagellm_protocol import ErrorCode, SageLLMError


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
