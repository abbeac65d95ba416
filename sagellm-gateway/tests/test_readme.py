"""What can be set, called, asked for or measured is in the README."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from sagellm_gateway import GatewaySettings
from sagellm_gateway.openai.adapters import LoadAdapterBody, UnloadAdapterBody
from sagellm_gateway.openai.chat import ChatBody
from sagellm_gateway.openai.completions import CompletionBody
from sagellm_gateway.openai.embeddings import EmbeddingBody
from sagellm_gateway.openai.rerank import RerankBody, ScoreBody

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def documented() -> set[str]:
    if not README.exists():
        pytest.skip("installed without its README")
    prose = re.sub(r"^```.*?^```$", "", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([^`\n]+)`", prose))


def test_every_setting_is_documented(documented: set[str]) -> None:
    assert set(GatewaySettings.model_fields) <= documented


def test_every_route_is_documented_and_no_other(documented: set[str], http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()["paths"]
    served = {f"{method.upper()} {path}" for path, methods in described.items() for method in methods}
    told = {name for name in documented if re.fullmatch(r"(GET|POST) /\S+", name)} - {"GET /openapi.json"}
    assert told == served


@pytest.mark.parametrize(
    "body", [ChatBody, CompletionBody, EmbeddingBody, RerankBody, ScoreBody, LoadAdapterBody, UnloadAdapterBody]
)
def test_every_parameter_is_documented(body: type[ChatBody], documented: set[str]) -> None:
    assert set(body.model_fields) | set(body.refused) <= documented


def test_every_metric_is_documented_and_no_other(documented: set[str], http: httpx.Client) -> None:
    exposed = re.findall(r"^# TYPE (\S+) (\S+)$", http.get("/metrics").text, re.MULTILINE)
    measured = {name.removesuffix("_total") for name, _ in exposed if not name.endswith("_created")}
    assert {name for name in documented if name.startswith("sagellm:")} - {"sagellm:"} == measured
