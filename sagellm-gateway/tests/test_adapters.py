"""Adapters by vLLM's routes: they come, are asked for as models, and go; what is wrong is said in the routes' names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from live import live
from sagellm_protocol import EngineSpec
from sagellm_protocol.plugins import CONTROL_PLANES, load


@pytest.fixture
def http(tmp_path: Path) -> Iterator[httpx.Client]:
    spec = EngineSpec(engine="mock", model="m", adapter_root=str(tmp_path), adapters={"first": "/first"})
    with (
        live(load(CONTROL_PLANES, "default"), spec) as serving,
        httpx.Client(base_url=serving.url, timeout=20, trust_env=False) as client,
    ):
        yield client


def post(http: httpx.Client, what: str, **body: Any) -> httpx.Response:
    return http.post(f"/v1/{what}_lora_adapter", json=body)


def test_an_adapter_comes_is_a_model_and_goes(http: httpx.Client) -> None:
    loaded = post(http, "load", lora_name="second", lora_path="second")
    assert loaded.status_code == 200
    assert loaded.text == "Success: LoRA adapter 'second' added successfully."
    listed = {model["id"]: model["parent"] for model in http.get("/v1/models").json()["data"]}
    assert listed == {"m": None, "first": "m", "second": "m"}
    asked = {"model": "second", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    answer = http.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200
    assert answer.json()["model"] == "second"
    assert "sagellm:adapters{engine=" in http.get("/metrics").text
    assert post(http, "unload", lora_name="second").text == "Success: LoRA adapter 'second' removed successfully."
    assert http.post("/v1/chat/completions", json=asked).status_code == 404


@pytest.mark.parametrize(
    ("what", "body", "status", "param"),
    [
        ("load", {"lora_name": "first", "lora_path": "x"}, 409, "lora_name"),
        ("load", {"lora_name": "x", "lora_path": "/etc"}, 403, "lora_path"),
        ("load", {"lora_name": "x", "lora_path": "x", "base_model_name": "y"}, 404, "base_model_name"),
        ("load", {"lora_name": "x"}, 400, "lora_path"),
        ("load", {"lora_name": "x", "lora_path": "x", "is_3d_lora_weight": True}, 400, "is_3d_lora_weight"),
        ("unload", {"lora_name": "x"}, 404, "lora_name"),
        ("unload", {"lora_name": "first", "lora_int_id": 3}, 400, "lora_int_id"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, what: str, body: dict[str, Any], status: int, param: str) -> None:
    answer = post(http, what, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_one_of_the_same_name_is_replaced_where_that_is_asked_for(http: httpx.Client) -> None:
    assert post(http, "load", lora_name="first", lora_path="x", load_inplace=True).status_code == 200


def test_what_stands_for_any_model_is_no_adapter(http: httpx.Client) -> None:
    post(http, "load", lora_name="a", lora_path="x")  # before the model's own name in every order
    answer = http.post("/v1/completions", json={"prompt": "hi", "max_tokens": 2})
    assert answer.json()["model"] == "m"


def test_nothing_is_loaded_unless_the_operator_allows_it() -> None:
    spec = EngineSpec(engine="mock", model="m", adapters={"first": "/first"})
    with (
        live(load(CONTROL_PLANES, "default"), spec) as serving,
        httpx.Client(base_url=serving.url, timeout=20, trust_env=False) as client,
    ):
        answer = post(client, "load", lora_name="x", lora_path="x")
        assert answer.status_code == 403
        assert "adapter_root" in answer.json()["error"]["message"]
