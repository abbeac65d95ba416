"""Callers that leave, stall or wait: over sockets of our own making."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import httpx
import pytest

from live import WAIT_S, Live, default_plane, live, mock_engine, mock_plane
from planes import ScriptedPlane, SoloPlane
from sagellm_protocol import EngineSpec, EngineStats, PlaneStatus, RequestEnding
from scripts import delta, end, endless, silent_after, start


def request(path: str = "/v1/chat/completions", **fields: Any) -> bytes:
    asked = {"prompt": "x"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "hello"}]}
    body = json.dumps({**asked, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def until_engine(gateway: Live, condition: Any) -> EngineStats:
    """Wait until the mock's statistics are so."""

    async def watch() -> EngineStats:
        while not condition(stats := await gateway.plane.engine.stats()):  # noqa: ASYNC110 - it has no event for this
            await asyncio.sleep(0.005)
        return stats

    return gateway.call(asyncio.wait_for(watch(), WAIT_S))


LONG = {"itl_ms": 5.0, "output_tokens": 20_000}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "fields", "sequences"),
    [
        ("/v1/chat/completions", {"n": 2}, 2),
        ("/v1/completions", {"prompt": ["a", "b", "c"], "max_tokens": 20_000}, 3),
    ],
)
def test_a_closed_socket_frees_the_engine(stream: bool, path: str, fields: Any, sequences: int) -> None:
    with live(mock_plane(**LONG)) as gateway:
        connection = gateway.raw(request(path, stream=stream, **fields))
        if stream:
            assert b"200 OK" in connection.recv(65536)
        working = until_engine(gateway, lambda stats: stats.running == sequences)
        assert working.used_blocks
        connection.close()
        freed = until_engine(gateway, lambda stats: stats.running == 0)
        assert freed.used_blocks == 0
        assert freed.cancelled == (len(fields["prompt"]) if "prompt" in fields else 1)
        gateway.until(lambda: gateway.server._lifecycle.in_flight == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_closed_socket_ends_the_request_in_the_control_plane(stream: bool) -> None:
    with live(default_plane, EngineSpec(engine="mock", model="mock", options=LONG)) as gateway:
        connection = gateway.raw(request(stream=stream))

        async def reached(in_flight: int) -> PlaneStatus:
            while (status := await gateway.plane.status()).in_flight != in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            return status

        gateway.call(asyncio.wait_for(reached(1), WAIT_S))
        connection.close()
        status = gateway.call(asyncio.wait_for(reached(0), WAIT_S))
        assert status.ended[RequestEnding.CANCELLED] == status.accepted == 1


def test_a_reset_connection_frees_the_engine() -> None:
    with live(mock_plane(**LONG)) as gateway:
        connection = gateway.raw(request(stream=True))
        connection.recv(65536)
        # With a linger of nothing, closing sends a reset in place of an end.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.close()
        assert until_engine(gateway, lambda stats: stats.running == 0 and stats.cancelled == 1).used_blocks == 0


def test_a_caller_that_leaves_before_the_first_token_frees_the_engine() -> None:
    with live(mock_plane(prefill_tokens_per_s=1.0, text="late")) as gateway:
        connection = gateway.raw(request(stream=True))
        until_engine(gateway, lambda stats: stats.running == 1)
        connection.close()
        assert until_engine(gateway, lambda stats: stats.running == 0).cancelled == 1


def test_a_caller_that_leaves_within_its_body_is_no_failure_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    with live(mock_plane(text="never")) as gateway:
        connection = gateway.raw(request()[:-5])
        gateway.until(lambda: gateway.server._lifecycle.in_flight == 1)
        connection.close()
        gateway.until(lambda: gateway.server._lifecycle.in_flight == 0)
        counted = httpx.get(f"{gateway.url}/metrics").text
    assert 'route="/v1/chat/completions",status="499"} 1.0' in counted
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_slow_reader_holds_back_what_is_pulled_from_the_plane() -> None:
    plane = ScriptedPlane(endless("x" * 1000))
    with live(lambda: plane) as gateway:
        connection = gateway.raw(request(stream=True), receive_buffer=4096)

        async def settled() -> int:
            """Events pulled once no more are."""
            before = -1
            while before != plane.pulled or not before:
                before = plane.pulled
                await asyncio.sleep(0.2)
            return before

        held = gateway.call(settled())
        # The gateway's own buffers, and the kernel's: some megabytes, and not what an endless stream would fill.
        assert held < 12_000
        while plane.pulled == held:
            assert connection.recv(65536)
        connection.close()
        gateway.until(plane.closed.is_set)


def test_a_reader_that_takes_nothing_is_given_up() -> None:
    plane = ScriptedPlane(endless("x" * 1000))
    with live(lambda: plane, stall_timeout_s=0.3) as gateway:
        connection = gateway.raw(request(stream=True), receive_buffer=4096)
        gateway.until(plane.closed.is_set)
        gateway.until(lambda: gateway.server._lifecycle.in_flight == 0)
        connection.close()


def test_a_silent_stream_shows_signs_of_life() -> None:
    plane = ScriptedPlane(silent_after(start(), delta("a")))
    with live(lambda: plane, sse_keep_alive_s=0.05) as gateway:
        connection = gateway.raw(request(stream=True))
        got = b""
        while got.count(b": keep-alive\n\n") < 2:
            got += connection.recv(65536)
        assert b'"content":"a"' in got
        connection.close()
        gateway.until(plane.closed.is_set)


def test_a_stream_whose_first_token_is_late_begins_with_signs_of_life() -> None:
    plane = ScriptedPlane(silent_after(start()))
    with live(lambda: plane, sse_keep_alive_s=0.05) as gateway:
        connection = gateway.raw(request(stream=True))
        got = b""
        while b": keep-alive\n\n" not in got:
            got += connection.recv(65536)
        assert got.startswith(b"HTTP/1.1 200")
        connection.close()


def test_one_slow_reader_does_not_slow_another() -> None:
    async def fast(_: Any) -> Any:
        yield start()
        yield delta("quick")
        yield end()

    plane = ScriptedPlane(endless("x" * 1000))
    with live(lambda: plane) as gateway:
        slow = gateway.raw(request(stream=True), receive_buffer=4096)
        gateway.until(lambda: plane.pulled > 0)
        plane.script = fast
        answer = httpx.post(
            f"{gateway.url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "x"}]},
            timeout=WAIT_S,
            trust_env=False,
        )
        assert answer.json()["choices"][0]["message"]["content"] == "quick"
        slow.close()


def test_draining_lets_what_is_in_flight_finish_and_takes_nothing_new() -> None:
    with live(mock_plane(text="x" * 200, itl_ms=5.0)) as gateway:
        connection = gateway.raw(request(stream=True))
        got = connection.recv(65536)
        gateway.server.drain()
        with httpx.Client(base_url=gateway.url, timeout=WAIT_S, trust_env=False) as client:
            assert client.get("/health").status_code == 200
            ready = client.get("/ready")
            assert (ready.status_code, ready.json()["reason"]) == (503, "draining")
            refused = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "unavailable"
        while b"[DONE]" not in got:
            data = connection.recv(65536)
            assert data, got[-500:]
            got += data
        assert got.count(b'"content":"x"') == 200
        assert gateway.thread is not None
        gateway.thread.join(WAIT_S)
        assert not gateway.thread.is_alive()
        connection.close()


@pytest.mark.parametrize("stream", [False, True])
def test_what_outlives_the_drain_ends_with_an_error_that_says_so(stream: bool) -> None:
    with live(lambda: SoloPlane(mock_engine(**LONG)), drain_s=0.0) as gateway:
        connection = gateway.raw(request(stream=stream))
        until_engine(gateway, lambda stats: stats.running == 1)
        got = connection.recv(65536) if stream else b""
        gateway.server.drain()
        while data := connection.recv(65536):
            got += data
        assert b"the gateway stopped before the answer was complete" in got
        assert b'"finish_reason":"' not in got
        assert (b"HTTP/1.1 200" if stream else b"HTTP/1.1 503") in got
        connection.close()
