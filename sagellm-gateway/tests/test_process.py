"""Gateways in processes of their own: signals, ports, imports, the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from planes import ScriptedPlane
from sagellm_gateway import load_settings, serve
from sagellm_gateway.own_plane import attach_all
from sagellm_gateway.server import address, bind
from sagellm_protocol import EngineInfo, EngineRecord, EngineState, ErrorCode, SageLLMError

WAIT_S = 30
CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "x"}]}


@contextlib.contextmanager
def program(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program that is over when the block is."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


def serving_mock(options: dict[str, Any] | None = None, **settings: Any) -> contextlib.AbstractContextManager[Any]:
    program_file = str(Path(__file__).with_name("serve_mock.py"))
    return program(program_file, json.dumps(options or {}), json.dumps({"port": 0, **settings}))


def test_sigterm_drains_and_exits_with_status_zero() -> None:
    with serving_mock({"text": "x" * 100, "itl_ms": 10.0}) as process:
        url = process.stdout.readline().strip()
        with (
            httpx.Client(base_url=url, timeout=WAIT_S, trust_env=False) as client,
            client.stream("POST", CHAT, json={**BODY, "stream": True}) as stream,
        ):
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            while (ready := httpx.get(f"{url}/ready", timeout=WAIT_S, trust_env=False)).status_code == 200:
                pass
            assert ready.json()["reason"] == "draining"
            assert httpx.post(url + CHAT, json=BODY, timeout=WAIT_S, trust_env=False).status_code == 503
            told = [line for line in lines if line]
        assert told[-1] == "data: [DONE]"
        assert sum('"content":"x"' in line for line in told) == 100
        process.communicate(timeout=WAIT_S)
        assert process.returncode == 0


def test_a_second_signal_does_not_wait() -> None:
    with serving_mock({"output_tokens": 30_000, "itl_ms": 10.0}, drain_s=600) as process:
        url = process.stdout.readline().strip()
        with (
            httpx.Client(base_url=url, timeout=WAIT_S, trust_env=False) as client,
            client.stream("POST", CHAT, json={**BODY, "stream": True}) as stream,
        ):
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            while httpx.get(f"{url}/ready", timeout=WAIT_S, trust_env=False).status_code == 200:
                pass
            process.send_signal(signal.SIGINT)
            told = [line for line in lines if line]
        assert "stopped before the answer was complete" in told[-1]
        process.communicate(timeout=WAIT_S)
        assert process.returncode == 0


def test_a_serving_gateway_imports_no_torch_and_prints_nothing() -> None:
    with serving_mock({"text": "ok"}) as process:
        url = process.stdout.readline().strip()
        for stream in (False, True):
            assert httpx.post(url + CHAT, json={**BODY, "stream": stream}, trust_env=False).status_code == 200
        httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, trust_env=False)
        httpx.get(f"{url}/metrics", trust_env=False)
        process.send_signal(signal.SIGTERM)
        printed, complained = process.communicate(timeout=WAIT_S)
    modules = set(json.loads(printed))
    # numpy is there: the control plane decides over columns.
    assert not modules & {"torch", "transformers", "tokenizers", "sagellm_core", "sagellm_backend", "sagellm"}
    assert "sagellm_gateway" in modules
    assert complained == ""


async def test_a_busy_port_is_named_with_the_fix() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SageLLMError) as caught:
            await serve(ScriptedPlane(), load_settings(port=port))
    assert caught.value.code is ErrorCode.CONFLICT
    assert str(port) in caught.value.message
    assert "--port" in caught.value.message


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.7"])
def test_an_address_that_is_not_ours_is_refused_by_name(host: str) -> None:
    with pytest.raises(SageLLMError, match=host) as caught:
        bind(host, 0)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("turns", [1, 3, None], ids=["just-begun", "starting", "serving"])
async def test_cancelled_it_ends_the_application_before_it_goes(
    turns: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    listening = asyncio.Event()
    serving = asyncio.create_task(serve(ScriptedPlane(), load_settings(port=0), lambda _: listening.set()))
    if turns is None:
        await asyncio.wait_for(listening.wait(), WAIT_S)
    for _ in range(turns or 0):
        await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(serving, WAIT_S)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_the_address_of_a_socket_can_be_opened() -> None:
    with bind("127.0.0.1", 0) as four:
        assert address(four).startswith("http://127.0.0.1:")
    if socket.has_ipv6:
        with bind("::1", 0) as six:
            assert address(six).startswith("http://[::1]:")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid"])
async def test_strangers_are_kept_out_unless_they_are_asked_in(host: str) -> None:
    with pytest.raises(SageLLMError, match="allow_unauthenticated") as caught:
        await serve(ScriptedPlane(), load_settings(host=host))
    assert caught.value.param == "host"
    load_settings(host=host, api_keys="k").refuse_exposure()
    load_settings(host=host, allow_unauthenticated=True).refuse_exposure()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_this_machine_alone_needs_no_key(host: str) -> None:
    load_settings(host=host).refuse_exposure()


def test_the_module_serves_until_a_signal() -> None:
    with program("-m", "sagellm_gateway", "--port", "0", "--log-level", "error") as process:
        assert process.stderr is not None
        url = process.stderr.readline().removeprefix("serving on ").strip()
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        red = httpx.get(f"{url}/ready", trust_env=False)
        assert red.status_code == 503
        assert "engine" in red.json()["reason"]
        answer = httpx.post(url + CHAT, json=BODY, trust_env=False)
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "server_error"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=WAIT_S) == ("", "")
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--port", "70000"], {}, "port"),
        (["--log-level", "loud"], {}, "log_level"),
        (["--host", "0.0.0.0"], {}, "allow_unauthenticated"),
        (["--port", "0"], {"SAGELLM_GATEWAY_CONTROL_PLANE": "other"}, "installed: default"),
    ],
)
def test_a_mistake_is_one_line_and_no_traceback(arguments: list[str], environment: Any, said: str) -> None:
    with program("-m", "sagellm_gateway", *arguments, **environment) as process:
        printed, complained = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1
    assert printed == ""
    assert complained.startswith("error: ")
    assert complained.count("\n") == 1
    assert said in complained


def test_the_server_module_offers_an_app_for_uvicorn() -> None:
    from sagellm_gateway import server

    assert isinstance(server.app, FastAPI)
    with pytest.raises(AttributeError):
        server.no_such_name  # noqa: B018


async def test_engine_servers_are_tried_until_they_are_there_or_refuse_us() -> None:
    asked: list[tuple[str, str | None]] = []

    class Attaching(ScriptedPlane):
        async def attach_engine(self, url: str, engine_id: str | None = None, api_key: str | None = None) -> Any:
            asked.append((url, api_key))
            if "refusing" in url:
                raise SageLLMError(ErrorCode.UNSUPPORTED, "another wire version")
            if sum(known == url for known, _ in asked) < 3:
                raise SageLLMError(ErrorCode.UNAVAILABLE, "nobody answers")
            info = EngineInfo(engine_id="e", engine="x", model="m", served_names=("m",), state=EngineState.READY)
            return EngineRecord(info=info)

    settings = load_settings(engines="http://late,http://refusing", engine_api_key="secret")
    await asyncio.wait_for(attach_all(Attaching(), settings, first_wait_s=0.001), WAIT_S)
    assert asked.count(("http://late", "secret")) == 3
    assert asked.count(("http://refusing", "secret")) == 1
