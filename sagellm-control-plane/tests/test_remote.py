"""The remote engine over real HTTP: what breaks, falls silent, is refused, or is no engine server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable

import aiohttp
import pytest

from conftest import ask, mock, until
from sagellm_control_plane.launchers.subprocess import SubprocessHandle, SubprocessLauncher
from sagellm_control_plane.remote.client import RemoteEngine
from sagellm_control_plane.service import ControlPlaneService
from sagellm_protocol import (
    PROTOCOL_VERSION,
    DeltaEvent,
    EndEvent,
    EngineState,
    ErrorCode,
    ErrorEvent,
    RequestEnding,
    SageLLMError,
    StartEvent,
    StreamEvent,
)
from sagellm_protocol.remote import PREFIX, VERSION_HEADER
from sagellm_protocol.testing.mock_engine import MockEngine
from serving import raw_server, request_head, served

PATIENCE_S = 30.0
INFO = {
    "engine_id": "raw",
    "engine": "raw",
    "model": "m",
    "served_names": ["m"],
    "state": "READY",
    "capabilities": {"features": ["generate"]},
}
START = b'{"type":"start","request_id":"r","prompt_tokens":1}\n'
DELTA = b'{"type":"delta","request_id":"r","text":"a","token_ids":[97]}\n'
END = (
    b'{"type":"end","request_id":"r","choices":[{"index":0,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1,"completion_tokens":1}}\n'
)


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def talking(*pieces: bytes | None, length: bool = False) -> Callable[..., object]:
    """A server whose generations send these pieces; ``None`` stands for silence that does not end."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path, _ = await request_head(reader)
            if path == PREFIX + "/info":
                writer.write(answer(json.dumps(INFO).encode()))
                continue
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for piece in pieces:
                if piece is None:
                    await asyncio.Event().wait()
                else:
                    writer.write(chunk(piece))
                    await writer.drain()
            return

    return talk


async def events_of(url: str, **options: float) -> list[StreamEvent]:
    engine = RemoteEngine(url, **options)  # type: ignore[arg-type]
    await engine.start()
    try:
        stream = engine.generate(ask())
        return await asyncio.wait_for(_all(stream), PATIENCE_S)
    finally:
        await engine.stop()


async def _all(stream: object) -> list[StreamEvent]:
    return [event async for event in stream]  # type: ignore[attr-defined]


def failure(events: list[StreamEvent]) -> SageLLMError:
    assert isinstance(events[-1], ErrorEvent), events
    return SageLLMError.from_info(events[-1].error)


async def refused(url: str, **options: str) -> SageLLMError:
    engine = RemoteEngine(url, **options)  # type: ignore[arg-type]
    try:
        with pytest.raises(SageLLMError) as refusal:
            await asyncio.wait_for(engine.start(), PATIENCE_S)
        return refusal.value
    finally:
        await engine.stop()


async def test_a_stream_that_breaks_off_is_a_failure_and_never_a_finish() -> None:
    async with raw_server(talking(START, DELTA)) as url:
        events = await events_of(url)
    assert [type(event) for event in events] == [StartEvent, DeltaEvent, ErrorEvent]
    assert failure(events).code is ErrorCode.ENGINE_FAILED


async def test_a_stream_that_ends_whole_but_without_a_terminal_event_is_a_failure() -> None:
    async with raw_server(talking(START, DELTA, b"")) as url:
        error = failure(await events_of(url))
    assert error.code is ErrorCode.ENGINE_FAILED
    assert "before the answer was complete" in error.message


async def test_a_last_line_that_was_cut_is_not_read_as_an_event() -> None:
    async with raw_server(talking(START, END[:-1], b"")) as url:
        assert failure(await events_of(url)).code is ErrorCode.ENGINE_FAILED


async def test_events_arrive_whole_however_they_are_cut() -> None:
    whole = START + b"\n" + DELTA + b"\n" + END
    for size in (1, 7, 50, len(whole)):
        pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
        async with raw_server(talking(*pieces)) as url:
            assert [type(event) for event in await events_of(url)] == [StartEvent, DeltaEvent, EndEvent]


async def test_what_is_no_event_is_a_failure() -> None:
    async with raw_server(talking(START, b'{"type":"surprise"}\n', None)) as url:
        error = failure(await events_of(url))
    assert error.code is ErrorCode.ENGINE_FAILED
    assert "no event" in error.message


async def test_silence_past_the_limit_is_a_failure() -> None:
    async with raw_server(talking(START, DELTA, None)) as url:
        events = await events_of(url, silence_s=0.2)
    assert failure(events).code is ErrorCode.ENGINE_FAILED
    assert "silent" in failure(events).message


async def test_signs_of_life_keep_a_slow_stream_open() -> None:
    engine = MockEngine(mock(itl_ms=400.0))
    async with served(engine, keepalive_s=0.05) as url:
        client = RemoteEngine(url, silence_s=0.25)
        await client.start()
        events = await asyncio.wait_for(_all(client.generate(ask(max_tokens=3))), PATIENCE_S)
        await client.stop()
    assert isinstance(events[-1], EndEvent)


async def test_nothing_listening_is_unavailable_and_may_be_retried() -> None:
    error = await refused("http://127.0.0.1:9")
    assert error.code is ErrorCode.UNAVAILABLE
    assert error.retryable


async def test_an_openai_server_is_told_from_an_engine_server() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path, _ = await request_head(reader)
            known = path == "/v1/models"
            writer.write(answer(b'{"data":[]}') if known else answer(b'{"detail":"Not Found"}', "404 Not Found"))

    async with raw_server(talk) as url:
        error = await refused(url)
    assert error.code is ErrorCode.UNSUPPORTED
    assert "OpenAI-compatible" in error.message


async def test_a_web_server_of_another_kind_is_refused() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request_head(reader)
            writer.write(answer(b"<html>hello</html>"))

    async with raw_server(talk) as url:
        assert (await refused(url)).code is ErrorCode.UNSUPPORTED


async def test_another_wire_version_is_refused_by_both_ends() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        body = json.dumps(INFO).encode()
        head = f"HTTP/1.1 200 OK\r\n{VERSION_HEADER}: 9.9\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()

    async with raw_server(talk) as url:
        error = await refused(url)
    assert error.code is ErrorCode.UNSUPPORTED
    assert "9.9" in error.message
    async with served(MockEngine(mock())) as url, aiohttp.ClientSession() as session:
        async with session.get(url + PREFIX + "/info", headers={VERSION_HEADER: "9.9"}) as response:
            assert response.status == 400
            assert "9.9" in await response.text()
        async with session.get(url + PREFIX + "/info") as response:
            assert response.headers[VERSION_HEADER] == PROTOCOL_VERSION


async def test_a_key_is_wanted_everywhere_but_for_health() -> None:
    async with served(MockEngine(mock()), api_key="s3cret") as url:
        assert (await refused(url)).code is ErrorCode.UNAUTHENTICATED
        assert (await refused(url, api_key="wrong")).code is ErrorCode.UNAUTHENTICATED
        engine = RemoteEngine(url, api_key="s3cret")
        await engine.start()
        assert isinstance((await _all(engine.generate(ask())))[-1], EndEvent)
        await engine.stop()
        async with aiohttp.ClientSession() as session:
            for path in ("info", "stats", "render", "generate", "embed", "score", "abort", "drain", "made-up"):
                async with session.post(f"{url}{PREFIX}/{path}") as response:
                    assert response.status == 401
            async with session.get(f"{url}{PREFIX}/health") as response:
                assert response.status == 200


async def test_bad_bodies_are_refused_by_name() -> None:
    async with served(MockEngine(mock()), max_body_bytes=1000) as url, aiohttp.ClientSession() as session:
        for path in ("generate", "render", "embed", "abort"):
            async with session.post(f"{url}{PREFIX}/{path}", data=b'{"surprise": 1}') as response:
                assert response.status == 400
                assert "surprise" in await response.text()
            async with session.post(f"{url}{PREFIX}/{path}", data=b"x" * 1001) as response:
                assert response.status == 413


async def test_a_client_that_leaves_aborts_its_request() -> None:
    engine = MockEngine(mock(itl_ms=2.0))
    async with served(engine) as url:
        client = RemoteEngine(url)
        await client.start()
        stream = client.generate(ask(max_tokens=5000))
        await anext(stream)
        await stream.aclose()

        async def aborted() -> bool:
            return (await engine.stats()).cancelled == 1

        await until(aborted)
        assert (await engine.stats()).used_blocks == 0
        await client.stop()


async def test_health_is_red_once_the_engine_is_dead() -> None:
    engine = MockEngine(mock())
    async with served(engine) as url, aiohttp.ClientSession() as session:
        engine.die("pulled the plug")
        async with session.get(f"{url}{PREFIX}/health") as response:
            assert response.status == 503


async def read(plane: ControlPlaneService, request: object) -> list[StreamEvent]:
    return await asyncio.wait_for(_all(plane.submit(request)), PATIENCE_S)  # type: ignore[arg-type]


async def test_an_attached_engine_that_came_back_as_another_is_known_by_its_new_name(
    planes: Callable[..., ControlPlaneService],
) -> None:
    plane = planes()
    async with served(MockEngine(mock("before"))) as url:
        await plane.attach_engine(url, engine_id="e")
        assert isinstance((await read(plane, ask("before")))[-1], EndEvent)
    await until(lambda: plane.fleet.member("e").state is EngineState.ERROR)
    async with served(MockEngine(mock("after")), port=int(url.rsplit(":", 1)[1])):
        await until(lambda: plane.fleet.member("e").ready)
        assert [model.name for model in await plane.models()] == ["after"]
        assert isinstance((await read(plane, ask("after")))[-1], EndEvent)


async def test_a_killed_engine_process_fails_its_request_and_is_started_again(
    planes: Callable[..., ControlPlaneService],
) -> None:
    plane = planes()
    await plane.start_engine(mock(itl_ms=5.0), launcher="subprocess", engine_id="e")
    member = plane.fleet.member("e")
    assert isinstance(member.handle, SubprocessHandle)
    stream = plane.submit(ask(max_tokens=5000))
    while not isinstance(await asyncio.wait_for(anext(stream), PATIENCE_S), DeltaEvent):
        pass
    os.kill(member.handle.pid, signal.SIGKILL)
    assert failure(await asyncio.wait_for(_all(stream), PATIENCE_S)).code is ErrorCode.ENGINE_FAILED
    assert plane.ledger.ended[RequestEnding.FAILED] == 1

    await until(lambda: member.restarts and member.ready)
    assert isinstance((await read(plane, ask()))[-1], EndEvent)


async def test_a_stopped_engine_process_is_found_out_while_others_answer(
    planes: Callable[..., ControlPlaneService],
) -> None:
    plane = planes(auto_restart=False, poll_timeout_s=0.2, stop_timeout_s=0.5)
    await plane.start_engine(mock(itl_ms=5.0), launcher="subprocess", engine_id="frozen")
    handle = plane.fleet.member("frozen").handle
    assert isinstance(handle, SubprocessHandle)
    stream = plane.submit(ask(max_tokens=5000))
    while not isinstance(await asyncio.wait_for(anext(stream), PATIENCE_S), DeltaEvent):
        pass
    os.kill(handle.pid, signal.SIGSTOP)
    try:
        await plane.start_engine(mock(), engine_id="other")
        for _ in range(5):
            assert isinstance((await read(plane, ask()))[-1], EndEvent)
        assert failure(await asyncio.wait_for(_all(stream), PATIENCE_S)).code is ErrorCode.ENGINE_FAILED
        assert plane.fleet.member("frozen").state is EngineState.ERROR
    finally:
        os.kill(handle.pid, signal.SIGKILL)


async def test_sigterm_finishes_what_is_in_flight_and_takes_nothing_new() -> None:
    handle = await SubprocessLauncher(drain_s=20.0).start(mock(itl_ms=10.0), "e")
    stream = handle.engine.generate(ask(max_tokens=60))
    while not isinstance(await asyncio.wait_for(anext(stream), PATIENCE_S), DeltaEvent):
        pass
    os.kill(handle.pid, signal.SIGTERM)

    async def draining() -> bool:
        return (await handle.engine.stats()).state is EngineState.DRAINING

    await until(draining)
    assert failure(await _all(handle.engine.generate(ask()))).code is ErrorCode.UNAVAILABLE
    rest = await asyncio.wait_for(_all(stream), PATIENCE_S)
    assert isinstance(rest[-1], EndEvent)
    assert rest[-1].usage.completion_tokens == 60
    assert "exit status 0" in await asyncio.wait_for(handle.last_words(), PATIENCE_S)
    await handle.stop()


async def test_an_engine_process_ends_when_whoever_started_it_is_gone() -> None:
    script = (
        "import asyncio, sys\n"
        "from sagellm_protocol import EngineSpec\n"
        "from sagellm_control_plane.launchers.subprocess import SubprocessLauncher\n"
        "async def main():\n"
        "    handle = await SubprocessLauncher().start(EngineSpec(engine='mock', model='m'), 'e')\n"
        "    print(handle.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), PATIENCE_S))
    parent.kill()
    await parent.wait()

    await until(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
