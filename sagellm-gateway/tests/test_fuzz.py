"""No body gives a 500, and no error leaves OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sagellm_gateway.openai.chat import ChatBody
from sagellm_gateway.openai.completions import CompletionBody
from sagellm_gateway.openai.embeddings import EmbeddingBody
from sagellm_gateway.openai.messages import Turn
from sagellm_gateway.openai.rerank import RerankBody, ScoreBody

FIELDS = {
    "/v1/chat/completions": [*ChatBody.model_fields, *ChatBody.refused],
    "/v1/completions": [*CompletionBody.model_fields, *CompletionBody.refused],
    "/v1/embeddings": [*EmbeddingBody.model_fields, *EmbeddingBody.refused],
    "/v1/rerank": [*RerankBody.model_fields, *RerankBody.refused],
    "/v1/score": [*ScoreBody.model_fields, *ScoreBody.refused],
}
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["mock", "auto", "none", "user", "assistant", "tool", "text", "json_object", "function", ""])
)
names = st.sampled_from([*Turn.model_fields, "type", "text", "function", "json_schema", "include_usage", "json", "0"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=5), inner, max_size=4)
)
turn = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.text(max_size=20) | values},
    optional={name: values for name in Turn.model_fields if name not in {"role", "content"}},
)


def bodies(path: str) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies with a few fields that may be anything, around what would be answered."""
    sound: dict[str, st.SearchStrategy[Any]] = {
        "/v1/chat/completions": {"messages": st.lists(turn, max_size=3) | values, "max_tokens": st.just(4)},
        "/v1/completions": {"prompt": st.text(max_size=20) | values},
        "/v1/embeddings": {"input": st.text(max_size=20) | values},
        "/v1/rerank": {"query": st.text(max_size=20) | values, "documents": st.lists(st.text(max_size=20)) | values},
        "/v1/score": {"text_1": st.text(max_size=20) | values, "text_2": st.text(max_size=20) | values},
    }[path]
    odd = st.dictionaries(st.sampled_from(FIELDS[path]) | st.text(max_size=8), values, max_size=3)
    return st.builds(lambda base, extra: {**base, **extra}, st.fixed_dictionaries(sound), odd)


@pytest.mark.parametrize("path", list(FIELDS))
@given(data=st.data())
@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_no_body_gives_a_500(http: httpx.Client, path: str, data: st.DataObject) -> None:
    body = data.draw(bodies(path))
    # As Python writes it: also NaN and half surrogate pairs, which are not JSON.
    response = http.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
    assert response.status_code < 500, (response.status_code, response.text)
    if response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n") or '"error"' in response.text
