"""Ranking and scoring over HTTP, in the shapes that clients of other servers know."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from live import WAIT_S, default_plane, live, mock_plane
from sagellm_protocol import EngineSpec

QUERY = "a brown fox"
DOCUMENTS = ["an unrelated matter", "a brown fox", "a fox"]


@pytest.fixture(scope="module", params=["an engine alone", "the control plane"])
def http(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    if request.param == "an engine alone":
        serving = live(mock_plane(text="ok"))
    else:
        serving = live(default_plane, EngineSpec(engine="mock", model="mock"))
    with serving as found, httpx.Client(base_url=found.url, trust_env=False, timeout=WAIT_S) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_documents_come_back_best_first_with_their_places(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json={"model": "mock", "query": QUERY, "documents": DOCUMENTS}).json()
    assert [result["index"] for result in answer["results"]] == [1, 2, 0]
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert [result["document"]["text"] for result in answer["results"]] == [DOCUMENTS[at] for at in (1, 2, 0)]
    assert answer["model"] == "mock"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0


def test_only_the_best_come_back_where_so_many_are_asked_for(http: httpx.Client) -> None:
    body = {"query": QUERY, "documents": [{"text": one} for one in DOCUMENTS], "top_n": 2, "return_documents": False}
    answer = http.post("/v1/rerank", json=body).json()
    assert [result["index"] for result in answer["results"]] == [1, 2]
    assert all("document" not in result for result in answer["results"])


def test_scores_come_in_the_order_of_the_texts(http: httpx.Client) -> None:
    answer = http.post("/v1/score", json={"text_1": QUERY, "text_2": DOCUMENTS}).json()
    assert [(one["object"], one["index"]) for one in answer["data"]] == [("score", at) for at in range(3)]
    ranked = http.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS}).json()["results"]
    by_index = {result["index"]: result["relevance_score"] for result in ranked}
    assert [one["score"] for one in answer["data"]] == [by_index[at] for at in range(3)]
    alone = http.post("/v1/score", json={"text_1": QUERY, "text_2": QUERY}).json()
    assert [one["score"] for one in alone["data"]] == [1.0]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"query": QUERY, "documents": []}, "documents"),
        ("/v1/rerank", {"query": QUERY, "documents": [{"title": "x"}]}, "documents[0]"),
        ("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "", "documents": DOCUMENTS}, "query"),
        ("/v1/score", {"text_1": "", "text_2": "x"}, "text_1"),
        ("/v1/score", {"text_1": "x", "text_2": [7]}, "text_2[0]"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_the_names_of_the_api(
    http: httpx.Client, path: str, body: dict[str, object], param: str
) -> None:
    response = http.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
