"""Launchers, policies and routers of other distributions are found by entry point, without an edit here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import ask, mock
from sagellm_control_plane.service import ControlPlaneService, create
from sagellm_protocol import EndEvent, SageLLMError, plugins

TOY = """
import random
from sagellm_control_plane.launchers.local import LocalLauncher
from sagellm_control_plane.policies import Policy
from sagellm_control_plane.routing import Router

started = []

class NewestFirst(Policy):
    def key(self, request, scene):
        return (-request.number,)
    def reason(self, scene):
        return "newest_first: last come, first served"

class Last(Router):
    def choose(self, request, board, rows, now, rng):
        return int(rows[-1])

class Noting(LocalLauncher):
    async def start(self, spec, engine_id):
        started.append(engine_id)
        return await super().start(spec, engine_id)
"""
ENTRY_POINTS = """
[sagellm.policies]
newest_first = toy_control:NewestFirst
last = toy_control:Last
[sagellm.launchers]
noting = toy_control:Noting
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution of its own, installed where Python looks."""
    (tmp_path / "toy_control.py").write_text(TOY)
    info = tmp_path / "toy_control-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-control\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("toy_control", None)


@pytest.mark.usefixtures("toy")
async def test_a_plane_runs_with_a_policy_a_router_and_a_launcher_from_elsewhere(
    planes: Callable[..., ControlPlaneService],
) -> None:
    plane = planes(policy="newest_first", routing="last")
    for name in "ab":
        await plane.start_engine(mock(), launcher="noting", engine_id=name)
    assert sys.modules["toy_control"].started == ["a", "b"]
    assert plane.dispatcher.reason().startswith("newest_first")
    for _ in range(3):
        assert isinstance([event async for event in plane.submit(ask())][-1], EndEvent)
    assert [outcome.engine_id for outcome in plane.ledger.outcomes.of()] == ["b"] * 3


@pytest.mark.usefixtures("toy")
def test_a_router_is_not_taken_for_a_policy() -> None:
    with pytest.raises(SageLLMError, match="no queue policy"):
        create(policy="last")
    with pytest.raises(SageLLMError, match="no routing strategy"):
        create(routing="newest_first")


@pytest.mark.usefixtures("toy")
def test_what_is_installed_is_listed_beside_our_own() -> None:
    with pytest.raises(SageLLMError, match=r"fifo.*newest_first"):
        create(policy="made-up")


async def test_an_unknown_launcher_is_refused_with_those_there_are(planes: Callable[..., ControlPlaneService]) -> None:
    with pytest.raises(SageLLMError, match=r"made-up.*local.*subprocess"):
        await planes().start_engine(mock(), launcher="made-up")


def test_the_plane_is_found_by_entry_point() -> None:
    assert isinstance(plugins.load(plugins.CONTROL_PLANES, "default")(), ControlPlaneService)


def test_nothing_heavy_is_imported_with_the_plane() -> None:
    code = (
        "import sys, sagellm_control_plane.service, sagellm_control_plane.remote.server\n"
        "heavy = {'torch', 'transformers', 'sagellm_core', 'sagellm_backend', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    import subprocess

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
