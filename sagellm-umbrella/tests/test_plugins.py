"""An engine and a control plane of another distribution are found by entry point, without an edit here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from conftest import Server

TOY = """
import uuid

from sagellm_protocol import EngineSpec
from sagellm_protocol.testing import FakeControlPlane, MockEngine


def engine(spec):
    return MockEngine(spec.model_copy(update={"options": {"text": "toy at your service"}}))


def plane(**options):
    return FakeControlPlane(MockEngine(EngineSpec(engine="mock", model="toy-model")))


def no_engine(spec):
    return object()
"""
ENTRY_POINTS = """
[sagellm.engines]
toy = toy_parts:engine
hollow = toy_parts:no_engine

[sagellm.control_planes]
toy = toy_parts:plane
"""


@pytest.fixture
def toy(tmp_path: Path) -> dict[str, str]:
    """A distribution installed where Python looks, as the environment of a process."""
    (tmp_path / "toy_parts.py").write_text(TOY, encoding="utf-8")
    info = tmp_path / "toy_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-parts\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))}


def test_an_engine_of_another_distribution_answers_in_the_terminal(
    toy: dict[str, str], sagellm: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = sagellm("run", "Hello", "--engine", "toy", "--model", "any", **toy)
    assert done.returncode == 0, done.stderr
    assert "toy at your service" in done.stdout


def test_an_engine_of_another_distribution_is_served(toy: dict[str, str], serve: Callable[..., Server]) -> None:
    server = serve("serve", "--engine", "toy", "any", **toy)
    answer = httpx.post(f"{server.url}/completions", json={"model": "any", "prompt": "Hello", "max_tokens": 40}).json()
    assert "toy at your service" in answer["choices"][0]["text"]


def test_what_is_no_engine_is_refused_with_what_it_lacks(
    toy: dict[str, str], sagellm: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = sagellm("run", "Hello", "--engine", "hollow", "--model", "any", **toy)
    assert done.returncode == 1
    assert "generate" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def toy_gateway(toy: dict[str, str]) -> Iterator[str]:
    """The address of a gateway over the toy control plane."""
    script = (
        "import asyncio\n"
        "from sagellm_gateway.server import serve\n"
        "asyncio.run(serve(on_ready=lambda url: print(url, flush=True)))\n"
    )
    environment = {**os.environ, **toy, "SAGELLM_GATEWAY_CONTROL_PLANE": "toy", "SAGELLM_GATEWAY_PORT": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()
        process.communicate(timeout=60)


def test_a_control_plane_of_another_distribution_stands_behind_the_gateway(toy_gateway: str) -> None:
    listed = httpx.get(f"{toy_gateway}/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["toy-model"]
    turns = [{"role": "user", "content": "Hello"}]
    answer = httpx.post(f"{toy_gateway}/v1/chat/completions", json={"model": "toy-model", "messages": turns})
    assert answer.status_code == 200, json.dumps(answer.json())
