"""Planes that are killed, with real engine processes: the next one has the same engines, none lost and none doubled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from conftest import QUICK, ask, mock, until
from sagellm_control_plane.launchers.folder import EngineFolder
from sagellm_control_plane.registry.store import Change, Store
from sagellm_control_plane.service import ControlPlaneService
from sagellm_control_plane.settings import PlaneSettings
from sagellm_protocol import DeltaEvent, EndEvent, EngineState, ErrorCode, SageLLMError, collect
from sagellm_protocol.testing.mock_engine import MockEngine
from serving import served

PATIENCE_S = 60.0
# A plane of its own process: does what it is told on the command line, says so, and waits to be killed.
PLANE = """
import asyncio, json, sys
from sagellm_control_plane.service import ControlPlaneService
from sagellm_control_plane.settings import PlaneSettings
from sagellm_protocol import EngineSpec

async def main(settings, wanted, attached):
    plane = ControlPlaneService(PlaneSettings.of(**settings))
    await plane.start()
    asks = [plane.want_engine(one, EngineSpec(**spec), "subprocess") for one, spec in wanted.items()]
    asks += [plane.want_attached(one, url) for one, url in attached.items()]
    print("begun", flush=True)
    await asyncio.gather(*asks)
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main(*map(json.loads, sys.argv[1:])))
"""


class Killed:
    """A plane's process."""

    def __init__(self, registry: Path) -> None:
        self.registry = registry
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, wanted: Any = (), attached: Any = (), **settings: Any) -> None:
        told = {**QUICK, "registry": str(self.registry), **settings}
        specs = {one: spec.model_dump(mode="json", exclude_defaults=True) for one, spec in dict(wanted).items()}
        arguments = [json.dumps(told), json.dumps(specs), json.dumps(dict(attached))]
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PLANE, *arguments, stdout=asyncio.subprocess.PIPE
        )

    async def says(self, word: str) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        while (line := await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)).strip() != word.encode():
            assert line, f"the plane ended before it said {word}"

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    def folder(self, engine_id: str) -> EngineFolder:
        return EngineFolder.of(engine_id, Path(f"{self.registry}.engines"))


@pytest.fixture
async def killed(tmp_path: Path) -> AsyncIterator[Killed]:
    plane = Killed(tmp_path / "registry")
    yield plane
    await plane.kill()
    for folder in (tmp_path / "registry.engines").glob("*"):
        engine = EngineFolder(folder)
        engine.signal(signal.SIGKILL)
        await until(lambda engine=engine: not engine.running())


@contextlib.asynccontextmanager
async def plane_after(killed: Killed, **settings: Any) -> AsyncIterator[ControlPlaneService]:
    plane = ControlPlaneService(PlaneSettings.of(**{**QUICK, "registry": str(killed.registry), **settings}))
    await plane.start()
    try:
        yield plane
    finally:
        await plane.stop()


def ready(plane: ControlPlaneService, *engines: str) -> bool:
    states = {record.info.engine_id: record.info.state for record in plane.status_now().engines}
    return states == dict.fromkeys(engines, EngineState.READY)


def kept(killed: Killed) -> set[str]:
    store = Store(killed.registry)
    try:
        return set(store.load().engines)
    finally:
        store.close()


async def test_a_plane_killed_while_it_serves_is_followed_by_one_with_the_same_processes(killed: Killed) -> None:
    async with served(MockEngine(mock("else"))) as url:
        await killed.start({"a": mock(), "b": mock("n")}, {"c": url})
        await killed.says("ready")
        pids = [killed.folder(one).pid() for one in "ab"]
        await killed.kill()
        async with plane_after(killed) as plane:
            await until(lambda: ready(plane, "a", "b", "c"))
            assert [killed.folder(one).pid() for one in "ab"] == pids
            for model in ("m", "n", "else"):
                assert (await collect(plane.submit(ask(model)), model)).usage.completion_tokens == 8
            record = await plane.want_engine("a", mock(), "subprocess")
            assert (record.info.engine_id, killed.folder("a").pid()) == ("a", pids[0])
    assert not any(killed.folder(one).running() for one in "ab"), "a plane that is stopped stops its engines"
    assert kept(killed) == {"a", "b", "c"}, "and has them again when it comes back"


async def test_a_plane_killed_while_an_engine_starts_is_followed_by_one_that_takes_up_the_start(killed: Killed) -> None:
    await killed.start({"a": mock(start_delay_s=1.5)})
    folder = killed.folder("a")
    await until(lambda: folder.running() and folder.pid() is not None)
    pid = folder.pid()
    await killed.kill()
    assert folder.whereabouts() is None
    async with plane_after(killed) as plane:
        await until(lambda: ready(plane, "a"))
        assert folder.pid() == pid


async def test_an_engine_that_was_kept_but_never_begun_is_started(killed: Killed) -> None:
    await killed.start({"a": mock()})
    await killed.says("ready")
    await killed.kill()
    folder = killed.folder("a")
    pid = folder.pid()
    folder.signal(signal.SIGKILL)
    await until(lambda: not folder.running())
    async with plane_after(killed) as plane:
        await until(lambda: ready(plane, "a"))
        assert folder.pid() != pid


async def test_an_engine_that_was_taken_up_and_dies_is_started_anew(killed: Killed) -> None:
    await killed.start({"a": mock()})
    await killed.says("ready")
    await killed.kill()
    async with plane_after(killed) as plane:
        await until(lambda: ready(plane, "a"))
        pid = killed.folder("a").pid()
        killed.folder("a").signal(signal.SIGKILL)
        await until(lambda: killed.folder("a").pid() not in (None, pid) and ready(plane, "a"))
        assert (await collect(plane.submit(ask()), "m")).usage.completion_tokens == 8


async def test_an_engine_that_runs_but_is_frozen_is_replaced(killed: Killed) -> None:
    await killed.start({"a": mock()})
    await killed.says("ready")
    await killed.kill()
    pid = killed.folder("a").pid()
    assert pid is not None
    async with plane_after(killed) as plane:
        await until(lambda: ready(plane, "a"))
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: not ready(plane, "a"))
        # Who stops it says please for a while first, which a process that is frozen does not hear.
        os.kill(pid, signal.SIGKILL)
        await until(lambda: killed.folder("a").pid() not in (None, pid) and ready(plane, "a"))


async def test_a_plane_killed_while_it_stops_an_engine_is_followed_by_one_that_finishes_that(killed: Killed) -> None:
    await killed.start({"a": mock(), "b": mock("n")})
    await killed.says("ready")
    await killed.kill()
    # As a plane leaves it that got no further than to say that it was about to.
    store = Store(killed.registry)
    store.apply(Change({"a": store.load().engines["a"].model_copy(update={"leaving": True})}))
    store.close()
    async with plane_after(killed) as plane:
        # Waits for what is left of it.
        pid = killed.folder("a").pid()
        record = await plane.want_engine("a", mock("o"), "subprocess")
        assert record.info.served_names == ("o",)
        assert killed.folder("a").pid() != pid
        await until(lambda: ready(plane, "a", "b"))


async def test_a_plane_that_is_to_be_outlived_leaves_its_engines_to_the_next(killed: Killed) -> None:
    async with plane_after(killed, engines_outlive=True) as plane:
        await plane.want_engine("a", mock(), "subprocess")
        pid = killed.folder("a").pid()
    assert killed.folder("a").running()
    async with plane_after(killed, engines_outlive=True) as plane:
        await until(lambda: ready(plane, "a"))
        assert killed.folder("a").pid() == pid
        await plane.stop_engine("a")
    assert not killed.folder("a").running()
    assert kept(killed) == set()


async def test_an_engine_of_another_kind_under_the_same_id_replaces_the_one_before(killed: Killed) -> None:
    async with plane_after(killed) as plane:
        await plane.want_engine("a", mock(), "subprocess")
        pid = killed.folder("a").pid()
        record = await plane.want_engine("a", mock("n"), "subprocess")
        assert record.info.served_names == ("n",)
        assert killed.folder("a").pid() != pid
        with pytest.raises(SageLLMError) as refusal:
            await plane.start_engine(mock(), "subprocess", "a")
        assert refusal.value.code is ErrorCode.CONFLICT


async def test_what_was_drained_stays_so_and_weights_and_aliases_stay_too(killed: Killed) -> None:
    async with plane_after(killed) as plane:
        await plane.start_engine(mock(), "local", "a")
        await plane.start_engine(mock("n"), "local", "b")
        await plane.drain_engine("a")
        plane.weigh_engine("b", 0.25)
        plane.aliases.set("chat", {"n": 1})
    async with plane_after(killed) as plane:
        await until(lambda: plane.fleet.member("a").state is EngineState.DRAINING)
        await until(lambda: plane.fleet.member("b").ready)
        assert plane.fleet.member("b").weight == 0.25
        assert (await collect(plane.submit(ask("chat")), "chat")).usage.completion_tokens == 8


async def test_a_plane_whose_disk_is_full_serves_starts_engines_and_says_so(killed: Killed) -> None:
    async with plane_after(killed) as plane:
        await plane.start_engine(mock(), "local", "a")
        assert await plane.registry.saved()
        assert plane.registry._store is not None
        db = plane.registry._store._db
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages}")
        await plane.start_engine(mock("n", text="x" * 20_000), "local", "b")
        assert any("full" in trouble for trouble in plane.status_now().troubles)
        assert (await collect(plane.submit(ask("n")), "n")).usage.completion_tokens == 8
        db.execute("PRAGMA max_page_count = 100000")
        await until(lambda: not plane.status_now().troubles)
    assert kept(killed) == {"a", "b"}


async def test_requests_in_flight_outlast_nothing_but_the_engine_is_free_of_them(killed: Killed) -> None:
    async with plane_after(killed, engines_outlive=True) as plane:
        await plane.want_engine("a", mock(itl_ms=20.0), "subprocess")
        stream = plane.submit(ask(max_tokens=2000))
        while not isinstance(await asyncio.wait_for(anext(stream), PATIENCE_S), DeltaEvent):
            pass
    await stream.aclose()
    async with plane_after(killed) as plane:
        await until(lambda: ready(plane, "a"))
        engine = plane.fleet.member("a").engine
        assert engine is not None

        async def idle() -> bool:
            return (await engine.stats()).running == 0

        await until(idle)
        events = [event async for event in plane.submit(ask())]
        assert isinstance(events[-1], EndEvent)
