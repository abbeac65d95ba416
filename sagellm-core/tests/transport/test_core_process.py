"""A core in its own process: its death and its parent's, its idleness, and signals that are its parent's to act on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from fake_executor import alone
from fake_model import CHARACTERS, fake_engine, fake_spec, write_tokenizer
from sagellm_core.front.engine import FrontEngine
from sagellm_protocol import EngineState, ErrorCode, ErrorEvent, Request, SageLLMError, SamplingParams, collect

PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("fake"))


@pytest_asyncio.fixture
async def engine(folder: Path) -> AsyncIterator[FrontEngine]:
    engine = fake_engine(folder, fake_spec("process"))
    await engine.start()
    yield engine
    await engine.stop()


def request(number: int = 0, max_tokens: int = 10) -> Request:
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return Request(request_id=f"r{number}", model="fake", prompt="hello there", sampling=sampling)


def pid_of(engine: FrontEngine) -> int:
    pid = engine._link._client.pid  # type: ignore[union-attr]
    assert isinstance(pid, int)
    return pid


async def test_a_killed_core_fails_its_requests_with_the_reason(engine: FrontEngine) -> None:
    streams = [engine.generate(request(number, 900)) for number in range(3)]
    for stream in streams:
        await anext(stream)
        await anext(stream)
    os.kill(pid_of(engine), signal.SIGKILL)
    for stream in streams:
        last = await asyncio.wait_for(_last(stream), PATIENCE_S)
        assert isinstance(last, ErrorEvent)
        assert last.error.code is ErrorCode.ENGINE_FAILED
        assert last.error.retryable
        assert "SIGKILL" in last.error.message
        assert "memory" in last.error.message
    assert engine.info.state is EngineState.ERROR
    assert "SIGKILL" in (engine.info.error or "")
    stats = await engine.stats()
    assert (stats.state, stats.failed, stats.heartbeat_age_s) == (EngineState.ERROR, 3, None)
    [refused] = [event async for event in engine.generate(request(9))]
    assert isinstance(refused, ErrorEvent)
    assert refused.error.code is ErrorCode.UNAVAILABLE
    assert "SIGKILL" in refused.error.message


async def test_a_core_that_was_killed_can_be_started_again(engine: FrontEngine) -> None:
    first = pid_of(engine)
    stream = engine.generate(request(1, 900))
    os.kill(first, signal.SIGKILL)
    assert isinstance(await asyncio.wait_for(_last(stream), PATIENCE_S), ErrorEvent)
    await engine.start()
    assert pid_of(engine) != first
    response = await collect(engine.generate(request()), "fake")
    assert list(response.output_tokens) == alone([CHARACTERS.index(c) + 1 for c in "hello there"], 10)


@pytest.mark.parametrize(
    ("factory", "code", "words"),
    [
        ("fake_model:refuse_to_build", ErrorCode.MODEL_NOT_FOUND, "has no config.json; name a folder that has"),
        ("fake_model:break_while_building", ErrorCode.INTERNAL, "ZeroDivisionError: one too many"),
        ("fake_model:die_while_building", ErrorCode.ENGINE_FAILED, "SIGKILL"),
        ("fake_model:die_while_building", ErrorCode.ENGINE_FAILED, "last words"),
        ("no_such_module:build", ErrorCode.INTERNAL, "no_such_module"),
    ],
)
async def test_the_root_cause_of_a_failed_start_is_the_message(
    folder: Path, factory: str, code: ErrorCode, words: str
) -> None:
    engine = fake_engine(folder, fake_spec("process"), factory)
    with pytest.raises(SageLLMError, match=words) as failure:
        await asyncio.wait_for(engine.start(), PATIENCE_S)
    assert failure.value.code is code
    assert engine.info.state is EngineState.ERROR
    assert words in (engine.info.error or "")


async def test_an_interrupt_of_the_whole_group_leaves_the_core_to_its_parent(engine: FrontEngine) -> None:
    stream = engine.generate(request(0, 300))
    await anext(stream)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid_of(engine), number)
    last = await asyncio.wait_for(_last(stream), PATIENCE_S)
    assert not isinstance(last, ErrorEvent)
    assert engine.info.state is EngineState.READY


async def test_a_core_ends_when_it_is_stopped_and_leaves_nothing_behind(folder: Path) -> None:
    engine = fake_engine(folder, fake_spec("process"))
    await engine.start()
    pid, sockets = pid_of(engine), engine._link._client._folder  # type: ignore[union-attr]
    assert sockets.is_dir()
    assert sockets.stat().st_mode & 0o077 == 0
    await engine.stop()
    assert not psutil.pid_exists(pid)
    assert not sockets.exists()


async def test_modules_in_the_working_folder_do_not_stand_in_for_the_standard_librarys(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('this is no json')")
    monkeypatch.chdir(tmp_path)
    engine = fake_engine(folder, fake_spec("process"))
    await asyncio.wait_for(engine.start(), PATIENCE_S)
    await engine.stop()


async def test_an_idle_core_is_blocked(engine: FrontEngine) -> None:
    await collect(engine.generate(request()), "fake")
    process = psutil.Process(pid_of(engine))
    before = process.cpu_times()
    switches = process.num_ctx_switches().voluntary
    await asyncio.sleep(1.5)
    after = process.cpu_times()
    assert (after.user + after.system) - (before.user + before.system) < 0.2
    assert process.num_ctx_switches().voluntary - switches < 100
    stats = await engine.stats()
    assert stats.heartbeat_age_s is not None


async def test_a_silent_core_shows_its_age_and_its_last_figures(engine: FrontEngine) -> None:
    await collect(engine.generate(request()), "fake")
    fresh = await engine.stats()
    os.kill(pid_of(engine), signal.SIGSTOP)
    try:
        stale = await engine.stats()
        later = await engine.stats()
    finally:
        os.kill(pid_of(engine), signal.SIGCONT)
    assert stale.steps == later.steps == fresh.steps
    assert stale.heartbeat_age_s is not None
    assert later.heartbeat_age_s is not None
    assert later.heartbeat_age_s > stale.heartbeat_age_s > 0.2


def test_a_core_ends_with_its_parent_and_the_front_needs_no_torch(folder: Path) -> None:
    script = f"""
        import asyncio, os, signal, sys
        sys.path[:0] = {[str(Path(__file__).parents[1])]!r}
        from pathlib import Path
        from fake_model import fake_engine, fake_spec
        from sagellm_protocol import Request, SamplingParams, collect

        async def main():
            engine = fake_engine(Path({str(folder)!r}), fake_spec("process"))
            await engine.start()
            sampling = SamplingParams(temperature=0, max_tokens=5)
            request = Request(request_id="r", model="fake", prompt="hello", sampling=sampling)
            await collect(engine.generate(request), "fake")
            heavy = {{"torch", "transformers", "numpy"}} & set(sys.modules)
            print(engine._link._client.pid, engine._link._client._folder, sorted(heavy), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid, sockets, heavy = done.stdout.split(maxsplit=2)
    assert heavy.strip() == "[]"
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(pid)).wait(PATIENCE_S)
    assert not Path(sockets).exists()


async def _last(stream: AsyncIterator[object]) -> object:
    last = None
    async for event in stream:
        last = event
    return last
