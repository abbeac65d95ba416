"""Engine processes that outlive who started them: their folder, their logs, why they did not start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conftest import ask, mock, until
from sagellm_control_plane.launchers import launcher_named
from sagellm_control_plane.launchers.folder import EngineFolder, Whereabouts
from sagellm_control_plane.launchers.kept import KeptHandle
from sagellm_control_plane.launchers.subprocess import SubprocessLauncher
from sagellm_protocol import EngineState, ErrorCode, Launcher, SageLLMError, collect
from sagellm_protocol.testing.conformance.launcher import LauncherConformance


@pytest.fixture
async def folders(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path
    folder = EngineFolder.of("e", tmp_path)
    folder.signal(signal.SIGKILL)
    await until(lambda: not folder.running())


class TestKeptEngines(LauncherConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def make_launcher(self) -> Launcher:
        return SubprocessLauncher(keep_in=self.folder)


async def test_an_engine_is_started_once_however_often_it_is_asked_for(folders: Path) -> None:
    launcher = SubprocessLauncher(keep_in=folders)
    first = await launcher.start(mock(), "e")
    with pytest.raises(SageLLMError, match="runs already, as process") as refusal:
        await launcher.start(mock(), "e")
    assert refusal.value.code is ErrorCode.CONFLICT
    again = await launcher.adopt(mock(), "e")
    assert again is not None
    assert again.pid == first.pid
    assert (await collect(again.engine.generate(ask()), "m")).usage.completion_tokens == 8
    await again.leave()
    await first.stop()
    assert await launcher.adopt(mock(), "e") is None


async def test_logs_are_read_whoever_asks_and_say_why_an_engine_died(folders: Path) -> None:
    handle = await SubprocessLauncher(keep_in=folders, env={"PYTHONFAULTHANDLER": "1"}).start(mock(), "e")
    assert isinstance(handle, KeptHandle)
    assert handle.pid is not None
    os.kill(handle.pid, signal.SIGABRT)
    await asyncio.wait_for(handle.ended(), 30)
    assert await handle.status() is EngineState.ERROR
    later = KeptHandle("e", EngineFolder.of("e", folders))
    assert any("Fatal Python error" in line for line in await later.logs())
    await handle.stop()


async def test_a_start_that_ends_without_a_word_is_told_with_the_last_lines(folders: Path) -> None:
    launcher = SubprocessLauncher(keep_in=folders, env={"PYTHONPATH": "", "PYTHONHOME": "/nowhere"})
    with pytest.raises(SageLLMError, match=r"did not start: .*Python") as failure:
        await launcher.start(mock(), "e")
    assert failure.value.code is ErrorCode.ENGINE_FAILED
    assert not EngineFolder.of("e", folders).running()


async def test_a_start_that_is_called_off_leaves_nothing(folders: Path) -> None:
    folder = EngineFolder.of("e", folders)
    start = asyncio.create_task(SubprocessLauncher(keep_in=folders).start(mock(start_delay_s=600.0), "e"))
    await until(lambda: folder.pid() is not None)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not folder.running()


async def test_options_of_a_launcher_are_honoured_or_refused_by_name() -> None:
    launcher = await launcher_named("subprocess", {"env": {"A": "b"}, "port": 0})
    assert isinstance(launcher, SubprocessLauncher)
    for name, options, words in [
        ("subprocess", {"prot": 1}, "prot"),
        ("subprocess", {"port": 70_000}, "port"),
        ("local", {"port": 1}, "port"),
    ]:
        with pytest.raises(SageLLMError, match=words) as refusal:
            await launcher_named(name, options)
        assert refusal.value.code is ErrorCode.INVALID_REQUEST


async def test_a_port_that_is_asked_for_is_taken(folders: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    handle = await SubprocessLauncher(port=port, keep_in=folders).start(mock(), "e")
    assert handle.url == f"http://127.0.0.1:{port}"
    await handle.stop()


def test_a_log_that_has_grown_is_begun_anew_and_its_writers_go_on(tmp_path: Path) -> None:
    folder = EngineFolder(tmp_path)
    with folder.log.open("ab", buffering=0) as output:
        output.write(b"".join(b"line %d\n" % number for number in range(1000)))
        folder.rotate(100_000)
        assert folder.log.stat().st_size > 0
        folder.rotate(1000)
        assert folder.log.stat().st_size == 0
        output.write(b"one more\n")
        assert folder.tail(3) == ["line 998", "line 999", "one more"]
        folder.rotate(5)
        output.write(b"and more\n")
        assert folder.tail(5) == ["one more", "and more"]
    assert folder.tail(0) == []


def test_every_id_has_a_folder_of_its_own_inside(tmp_path: Path) -> None:
    ids = ["a", "A", "..", ".", "a/b", "a%2Fb", "/etc", "x" * 512, "x" * 511, "é"]
    folders = [EngineFolder.of(one, tmp_path).path for one in ids]
    assert len(set(folders)) == len(ids)
    assert {folder.parent for folder in folders} == {tmp_path}


def test_only_the_lock_says_whether_an_engine_runs(tmp_path: Path) -> None:
    folder = EngineFolder.of("e", tmp_path)
    assert not folder.running()
    lock = folder.take()
    assert lock is not None
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    folder.tell(Whereabouts(url="http://127.0.0.1:1", api_key="k"))
    assert folder.running()
    assert folder.take() is None
    os.close(lock)
    assert folder.pid() == os.getpid()
    assert not folder.running(), "whatever its files say"
    # This process would not live to tell if it were sent.
    folder.signal(signal.SIGKILL)
    assert folder.whereabouts() is not None
    lock = folder.take()
    assert lock is not None
    assert folder.whereabouts() is None, "what one before said is of no use to whoever looks for the next"
    os.close(lock)
