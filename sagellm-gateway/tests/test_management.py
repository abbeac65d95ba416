"""What operators do to engines: only where it is allowed, and in vLLM's paths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from live import WAIT_S, Live, live
from planes import ScriptedPlane
from sagellm_protocol import EngineRecord, EngineState, ErrorCode, PlaneStatus, SageLLMError


class SleepyPlane(ScriptedPlane):
    """Keeps what is done to its one engine."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Any] = []
        self.state = EngineState.READY

    async def sleep_engine(self, engine_id: str, level: int = 1, mode: str = "wait") -> None:
        if level not in (1, 2):
            raise SageLLMError(ErrorCode.INVALID_REQUEST, f"level={level}", "level")
        self.done.append(("sleep", engine_id, level, mode))
        self.state = EngineState.SLEEPING

    async def wake_engine(self, engine_id: str) -> None:
        self.done.append(("wake", engine_id))
        self.state = EngineState.READY

    async def reload_engine(self, engine_id: str, model: str, revision: str | None = None) -> None:
        self.done.append(("reload", engine_id, model, revision))

    async def status(self) -> PlaneStatus:
        [record] = (await super().status()).engines
        info = record.info.model_copy(update={"state": self.state})
        return PlaneStatus(ready=self.state is EngineState.READY, engines=(EngineRecord(info=info),))


@pytest.fixture(scope="module")
def gateway() -> Iterator[Live]:
    with live(SleepyPlane, allow_management=True) as served:
        yield served


def client(gateway: Live) -> httpx.Client:
    return httpx.Client(base_url=gateway.url, timeout=WAIT_S, trust_env=False)


def test_engines_sleep_and_wake_as_with_vllm(gateway: Live) -> None:
    plane = gateway.plane
    with client(gateway) as http:
        assert http.get("/is_sleeping").json()["is_sleeping"] is False
        assert http.post("/sleep?level=2").json() == {"engines": ["e0"]}
        assert http.get("/is_sleeping").json() == {"is_sleeping": True, "engines": {"e0": "SLEEPING"}}
        assert http.get("/ready").status_code == 503
        assert http.post("/wake_up?engine=e0").status_code == 200
        assert http.post("/sleep", params={"mode": "abort"}).status_code == 200
        assert http.post("/wake_up").status_code == 200
    assert plane.done == [
        ("sleep", "e0", 2, "wait"),
        ("wake", "e0"),
        ("sleep", "e0", 1, "abort"),
        ("wake", "e0"),
    ]


def test_weights_are_reloaded(gateway: Live) -> None:
    with client(gateway) as http:
        assert http.post("/reload_weights", json={"model": "/models/b", "revision": "r"}).status_code == 200
    assert gateway.plane.done[-1] == ("reload", "e0", "/models/b", "r")


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/sleep?level=3", None, 400, "level"),
        ("/sleep?level=deep", None, 400, "level"),
        ("/sleep?level=" + "9" * 5000, None, 400, "level"),
        ("/sleep?engine=e9", None, 404, "engine"),
        ("/reload_weights", {}, 400, "model"),
        ("/reload_weights", {"model": "m", "modle": "m"}, 400, "modle"),
        ("/reload_weights", {"model": "m", "engine": 3}, 400, "engine"),
        ("/reload_weights", [], 400, None),
        ("/reload_weights", {"model": ""}, 400, "model"),
    ],
)
def test_mistakes_are_told_by_name(gateway: Live, path: str, body: Any, status: int, param: str | None) -> None:
    with client(gateway) as http:
        answer = http.post(path, json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


def test_a_body_that_is_nested_without_end_is_the_callers_mistake(gateway: Live) -> None:
    with client(gateway) as http:
        answer = http.post("/reload_weights", content="[" * 100_000, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_it_is_off_unless_the_operator_allows_it() -> None:
    with live(SleepyPlane) as gateway, client(gateway) as http:
        for answer in (
            http.post("/sleep"),
            http.post("/wake_up"),
            http.get("/is_sleeping"),
            http.post("/reload_weights", json={"model": "m"}),
        ):
            assert answer.status_code == 403
            assert "allow_management" in answer.json()["error"]["message"]
        assert gateway.plane.done == []


def test_a_key_is_wanted_where_there_are_keys() -> None:
    with live(SleepyPlane, allow_management=True, api_keys=("k",)) as gateway, client(gateway) as http:
        assert http.post("/sleep").status_code == 401
        assert gateway.plane.done == []


def test_a_plane_that_cannot_says_so() -> None:
    with live(ScriptedPlane, allow_management=True) as gateway, client(gateway) as http:
        assert http.post("/sleep").json()["error"]["code"] == "unsupported"
