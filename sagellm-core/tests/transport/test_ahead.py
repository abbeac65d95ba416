"""A core's process that is started before its task is known."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fake_model import fake_spec, write_tokenizer
from sagellm_core.ahead import core_ahead, take
from sagellm_core.front.engine import FrontEngine
from sagellm_core.transport.process import ProcessClient
from sagellm_core.transport.spawn import CoreProcess
from sagellm_protocol import EngineState, SageLLMError

PATIENCE_S = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path)


def engine_in(child: CoreProcess | None, folder: Path) -> FrontEngine:
    return FrontEngine(
        fake_spec("process"),
        lambda model, revision: folder,
        lambda spec, path: ProcessClient(spec, path, "fake_model:build_fake", child),
    )


async def test_an_engine_runs_in_the_process_that_was_started_ahead(folder: Path) -> None:
    with core_ahead():
        # Taken where another task or thread would, which have this context too.
        child = await asyncio.to_thread(take)
        assert child is not None
        assert take() is None
        engine = engine_in(child, folder)
        await asyncio.wait_for(engine.start(), PATIENCE_S)
    assert child.process.poll() is None
    assert engine.info.state is EngineState.READY
    await engine.stop()
    assert child.process.poll() == 0


async def test_a_process_that_died_before_its_task_is_told_of(folder: Path) -> None:
    with core_ahead():
        child = take()
    assert child is not None
    child.process.kill()
    child.process.wait(PATIENCE_S)
    engine = engine_in(child, folder)
    with pytest.raises(SageLLMError, match="SIGKILL"):
        await asyncio.wait_for(engine.start(), PATIENCE_S)
    await asyncio.wait_for(engine.stop(), PATIENCE_S)


def test_a_process_that_no_engine_takes_is_ended() -> None:
    before = {child.pid for child in psutil.Process().children()}
    with core_ahead():
        [started] = {child.pid for child in psutil.Process().children()} - before
    assert not psutil.pid_exists(started)
    assert take() is None


def test_a_process_that_waits_ends_with_its_parent() -> None:
    script = """
        import os
        from sagellm_core.transport.spawn import CoreProcess
        print(CoreProcess().process.pid, flush=True)
        os._exit(0)
    """
    code = "\n".join(line.strip() for line in script.splitlines())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    pid = int(done.stdout)
    if psutil.pid_exists(pid):
        psutil.Process(pid).wait(PATIENCE_S)


def test_starting_ahead_imports_nothing_that_takes_time() -> None:
    code = "import sys, sagellm_core.ahead; print(*{'asyncio', 'numpy', 'pydantic', 'torch', 'zmq'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
