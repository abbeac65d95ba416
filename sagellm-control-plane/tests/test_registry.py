"""The registry: what is kept survives whatever ends the process, and a disk that refuses stops nobody."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from conftest import mock
from sagellm_control_plane.registry import EngineEntry, Registry
from sagellm_protocol import ErrorCode, SageLLMError

LEASE_S = 30.0


def attached(engine_id: str, **fields: Any) -> EngineEntry:
    return EngineEntry(engine_id=engine_id, url="http://127.0.0.1:1", **fields)


@contextlib.asynccontextmanager
async def opened(path: Path | None, clock: Any = lambda: 0.0) -> Any:
    registry = Registry(path, LEASE_S, clock)
    await registry.open()
    try:
        yield registry
    finally:
        await registry.close()


async def test_what_is_kept_is_there_again(tmp_path: Path) -> None:
    launched = EngineEntry(
        engine_id="a", launcher="subprocess", spec=mock(itl_ms=2.0), launch={"port": 1}, names=("m",), weight=0.5
    )
    async with opened(tmp_path / "r", lambda: 7.0) as registry:
        registry.put(launched)
        registry.put(attached("b", api_key="k", drained=True, leaving=True, source="discovered"))
        registry.put(attached("c"))
        registry.remove("c")
        registry.alias("chat", {"m": 95, "n": 5})
        registry.heard("a")
    async with opened(tmp_path / "r") as registry:
        assert {entry.engine_id: entry for entry in registry.entries} == {
            "a": launched,
            "b": attached("b", api_key="k", drained=True, leaving=True, source="discovered"),
        }
        assert registry.aliases == {"chat": {"m": 95, "n": 5}}
        assert (registry.last_heard("a"), registry.last_heard("b")) == (7.0, None)


async def test_only_its_owner_may_read_the_keys_in_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "r"):
        assert (tmp_path / "r").stat().st_mode & 0o077 == 0


async def test_an_engine_that_is_not_heard_of_is_lost_once_and_found_again() -> None:
    now = 100.0
    async with opened(None, lambda: now) as registry:
        registry.put(attached("a"))
        registry.heard("a")
        now += LEASE_S
        assert registry.expire() == []
        now += 0.1
        assert registry.expire() == ["a"]
        assert registry.expire() == []
        assert registry.is_lost("a")
        registry.heard("a")
        assert not registry.is_lost("a")
        now += LEASE_S + 0.1
        assert registry.expire() == ["a"]


async def test_a_full_disk_is_told_of_and_what_it_refused_is_written_when_it_has_room(tmp_path: Path) -> None:
    async with opened(tmp_path / "r") as registry:
        registry.put(attached("a"))
        assert await registry.saved()
        _limit(registry, 0)
        registry.put(attached("b", names=("x" * 20_000,)))
        assert not await registry.saved()
        assert registry.trouble is not None
        assert "full" in registry.trouble
        assert registry.get("b") is not None, "memory is what counts"
        _limit(registry, 10_000)
        registry.remove("a")
        assert await registry.saved()
        assert registry.trouble is None
    async with opened(tmp_path / "r") as registry:
        assert [entry.engine_id for entry in registry.entries] == ["b"]


async def test_a_second_plane_is_refused_while_the_first_has_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "r"):
        with pytest.raises(SageLLMError, match="in use") as refusal:
            await Registry(tmp_path / "r", LEASE_S).open()
        assert refusal.value.code is ErrorCode.CONFLICT
    async with opened(tmp_path / "r"):
        pass


@pytest.mark.parametrize("damage", ["no database", "an entry that makes no sense", "a newer layout"])
async def test_a_damaged_file_is_refused_and_left_as_it_was(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "r"
    async with opened(path) as registry:
        registry.put(attached("a"))
    if damage == "no database":
        path.write_bytes(b"no database, but longer than a header of one" * 20)
    else:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("UPDATE engines SET entry = '{}'" if "entry" in damage else "PRAGMA user_version = 99")
            db.commit()
    before = path.read_bytes()
    with pytest.raises(SageLLMError, match="cannot be used"):
        await Registry(path, LEASE_S).open()
    assert path.read_bytes() == before
    # Nor is the lock held by whoever was refused.
    with pytest.raises(SageLLMError, match="cannot be used"):
        await Registry(path, LEASE_S).open()


def _limit(registry: Registry, more_pages: int) -> None:
    """Let the file grow by so many pages and no further, as a disk with that much room would."""
    assert registry._store is not None
    db = registry._store._db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages + more_pages}")


IDS = st.sampled_from("abc")


class RegistryMachine(RuleBasedStateMachine):
    """Against a dictionary: whatever happens, also to the process and the disk, nothing kept is lost or doubled."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "r"
        self.now = 0.0
        self.engines: dict[str, EngineEntry] = {}
        self.heard: dict[str, float] = {}
        self.aliases: dict[str, dict[str, float]] = {}
        self.full = False
        self.open()

    def open(self) -> None:
        self.registry = Registry(self.path, LEASE_S, lambda: self.now)
        self.run(self.registry.open())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 30))

    @rule(engine_id=IDS, weight=st.sampled_from([0.0, 1.0, 2.5]), drained=st.booleans(), leaving=st.booleans())
    def put(self, engine_id: str, **fields: Any) -> None:
        self.engines[engine_id] = attached(engine_id, names=("n" * 3000,), **fields)
        self.registry.put(self.engines[engine_id])

    @rule(engine_id=IDS)
    def remove(self, engine_id: str) -> None:
        self.engines.pop(engine_id, None)
        self.heard.pop(engine_id, None)
        self.registry.remove(engine_id)

    @rule(name=IDS, shares=st.none() | st.dictionaries(IDS, st.floats(0.1, 5), min_size=1))
    def alias(self, name: str, shares: dict[str, float] | None) -> None:
        if shares is None:
            self.aliases.pop(name, None)
        else:
            self.aliases[name] = shares
        self.registry.alias(name, shares)

    @rule(engine_id=IDS)
    def hear(self, engine_id: str) -> None:
        if engine_id in self.engines:
            self.heard[engine_id] = self.now
        self.registry.heard(engine_id)

    @rule(seconds=st.floats(0, 2 * LEASE_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.registry.expire()
        for engine_id in "abc":
            lost = engine_id in self.heard and self.now - self.heard[engine_id] > LEASE_S
            assert self.registry.is_lost(engine_id) == lost

    @rule(full=st.booleans())
    def fill_the_disk(self, full: bool) -> None:
        self.run(self.registry.saved())
        _limit(self.registry, 0 if full else 10_000)
        self.full = full

    @rule()
    def restart(self) -> None:
        """In good order, with room on the disk."""
        self.fill_the_disk(False)
        self.run(self.registry.close())
        self.open()

    @rule()
    def die(self) -> None:
        """Once what was changed is on disk, the process goes away without a word: its file is as it lies there."""
        self.fill_the_disk(False)
        self.registry.expire()
        assert self.run(self._settled())
        copy = self.path.with_name(f"{self.path.name}x")
        copy.write_bytes(self.path.read_bytes())
        journal = Path(f"{self.path}-journal")
        if journal.exists():
            Path(f"{copy}-journal").write_bytes(journal.read_bytes())
        self.run(self.registry.close())
        self.path = copy
        self.open()

    async def _settled(self) -> bool:
        self.registry.alias("settle", None)
        return await self.registry.saved()

    @invariant()
    def memory_is_right(self) -> None:
        if hasattr(self, "registry"):
            self._same(self.registry)

    def _same(self, registry: Registry) -> None:
        assert {entry.engine_id: entry for entry in registry.entries} == self.engines
        assert {one: registry.last_heard(one) for one in self.engines} == {
            one: self.heard.get(one) for one in self.engines
        }
        assert registry.aliases == self.aliases

    def teardown(self) -> None:
        if hasattr(self, "registry"):
            self.fill_the_disk(False)
            self.run(self.registry.close())
            self.loop.close()
            self.folder.cleanup()


TestRegistryAsAMachine = RegistryMachine.TestCase
TestRegistryAsAMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
