"""A file that lists engines and aliases: followed as it changes, and not when it is damaged."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import ask, until
from sagellm_control_plane.discovery import parse
from sagellm_control_plane.service import ControlPlaneService
from sagellm_protocol import EmbedRequest, EndEvent, EngineState, SageLLMError, collect

Planes = Callable[..., ControlPlaneService]


def launched(engine_id: str, model: str, **fields: Any) -> dict[str, Any]:
    return {"id": engine_id, "launcher": "local", "spec": {"engine": "mock", "model": model}, **fields}


def write(path: Path, *engines: dict[str, Any], **aliases: dict[str, float]) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"engines": engines, "aliases": aliases}))
    draft.replace(path)


@contextlib.asynccontextmanager
async def following(planes: Planes, path: Path) -> AsyncIterator[ControlPlaneService]:
    plane = planes(discover=str(path), discover_interval_s=0.02)
    await plane.start()
    yield plane


def serving(plane: ControlPlaneService) -> dict[str, list[str]]:
    return {member.engine_id: list(member.names) for member in plane.fleet if member.ready}


async def test_engines_come_and_go_and_change_with_the_file(planes: Planes, tmp_path: Path) -> None:
    path = tmp_path / "engines.json"
    write(path, launched("a", "m"), launched("b", "n", weight=0.5))
    async with following(planes, path) as plane:
        await until(lambda: serving(plane) == {"a": ["m"], "b": ["n"]})
        kept = plane.fleet.member("b").engine
        assert plane.fleet.member("b").weight == 0.5
        write(path, launched("b", "n", weight=2), launched("c", "o"))
        await until(lambda: serving(plane) == {"b": ["n"], "c": ["o"]})
        assert plane.fleet.member("b").weight == 2
        assert plane.fleet.member("b").engine is kept, "an engine whose share alone changed goes on"
        write(path, launched("b", "p"))
        await until(lambda: serving(plane) == {"b": ["p"]})


async def test_what_someone_asked_for_stays_whatever_the_file_lists(planes: Planes, tmp_path: Path) -> None:
    path = tmp_path / "engines.json"
    write(path, launched("a", "m"))
    async with following(planes, path) as plane:
        await until(lambda: serving(plane) == {"a": ["m"]})
        listed = plane.fleet.member("a").origin
        await plane.start_engine(listed.spec.model_copy(update={"model": "n"}), engine_id="mine")  # type: ignore[union-attr]
        write(path)
        await until(lambda: serving(plane) == {"mine": ["n"]})


@pytest.mark.parametrize("damage", ["{", '{"engines": [{"id": "a"}]}', '{"engnes": []}', None])
async def test_a_damaged_file_changes_nothing_and_is_told_of(
    planes: Planes, tmp_path: Path, damage: str | None
) -> None:
    path = tmp_path / "engines.json"
    write(path, launched("a", "m"))
    async with following(planes, path) as plane:
        await until(lambda: serving(plane) == {"a": ["m"]})
        if damage is None:
            path.unlink()
        else:
            path.write_text(damage)
        await until(lambda: plane.status_now().troubles)
        assert str(path) in plane.status_now().troubles[0]
        assert serving(plane) == {"a": ["m"]}
        write(path, launched("a", "m"), launched("b", "n"))
        await until(lambda: serving(plane) == {"a": ["m"], "b": ["n"]})
        assert plane.status_now().troubles == ()


async def test_an_engine_that_cannot_start_says_why_and_harms_no_other(planes: Planes, tmp_path: Path) -> None:
    path = tmp_path / "engines.json"
    bad = launched("bad", "x", launch={"speed": 9})
    write(path, bad, launched("a", "m"))
    async with following(planes, path) as plane:
        await until(lambda: serving(plane) == {"a": ["m"]})
        await until(lambda: plane.fleet.member("bad").state is EngineState.ERROR)
        assert "speed" in (plane.fleet.member("bad").error or "")


async def test_an_alias_shares_requests_between_models_and_goes_around_one_that_is_not_there(
    planes: Planes, tmp_path: Path
) -> None:
    path = tmp_path / "engines.json"
    write(path, launched("a", "m"), launched("b", "n"), m={"m": 3, "n": 1}, chat={"m": 1, "gone": 99})
    async with following(planes, path) as plane:
        await until(lambda: len(serving(plane)) == 2)
        drawn = Counter(plane.aliases.resolve("m") for _ in range(2000))
        assert 400 < drawn["n"] < 600
        assert {plane.aliases.resolve("chat") for _ in range(50)} == {"m"}
        assert isinstance((await _events(plane, "chat"))[-1], EndEvent)
        embedded = await plane.embed(EmbedRequest(request_id="e", model="chat", inputs=("a",)))
        assert embedded.model == "chat"
        assert [model.name for model in await plane.models()] == ["chat", "m", "n"]
        write(path, launched("a", "m"))
        await until(lambda: [model.name for model in plane.fleet.models()] == ["m"])
        with pytest.raises(SageLLMError, match="chat"):
            await collect(plane.submit(ask("chat")), "chat")


async def _events(plane: ControlPlaneService, model: str) -> list[Any]:
    return [event async for event in plane.submit(ask(model))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"engines": [{"id": "a"}]}', "url or spec"),
        ('{"engines": [{"id": "a", "url": "http://h", "launcher": "local"}]}', "nothing to launch"),
        ('{"engines": [{"id": "a", "url": "http://h", "api_key_env": "NOT_SET_ANYWHERE"}]}', "NOT_SET_ANYWHERE"),
        ('{"engines": [{"id": "a", "url": "http://h"}, {"id": "a", "url": "http://i"}]}', "twice"),
        ('{"engines": [{"id": "a", "url": "http://h", "wieght": 1}]}', "wieght"),
        ('{"aliases": {"a": {"m": 0}}}', "no model a share"),
        ('{"aliases": {"a": {"m": -1}}}', "shares of 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(SageLLMError, match=words):
        parse(text)


def test_a_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", "secret")
    listing = parse('{"engines": [{"id": "a", "url": "http://h", "api_key_env": "ENGINE_KEY"}]}')
    assert listing.engines["a"].api_key == "secret"
