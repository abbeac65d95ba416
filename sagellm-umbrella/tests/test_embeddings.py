"""An embedding model beside a chat model behind one address, as OpenAI's client uses both."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest

from conftest import Server, start, stop

CHAT, EMBEDDING = "smollm2-135m", "all-minilm-l6-v2"
TEXTS = ["A fox jumps over a dog.", "Some animal leaps over another.", "Rates were left unchanged."]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    embedding = start("engine", EMBEDDING)
    try:
        both = start("serve", CHAT, "--max-model-len", "512", "--attach", embedding.url)
        yield both
        assert stop(both) == 0
    finally:
        assert stop(embedding) == 0


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0, timeout=100) as made:
        yield made


def test_each_model_answers_what_it_is_for(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {CHAT, EMBEDDING}
    answer = client.chat.completions.create(model=CHAT, messages=[{"role": "user", "content": "Hello"}], max_tokens=4)
    assert answer.choices[0].message.content
    embedded = client.embeddings.create(model=EMBEDDING, input=TEXTS)
    vectors = np.array([item.embedding for item in embedded.data])
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > 0.4 > vectors[0] @ vectors[2]
    assert embedded.usage.prompt_tokens == embedded.usage.total_tokens > 0


def test_each_model_refuses_what_it_is_not_for_and_says_what_is(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="name a model that generates"):
        client.chat.completions.create(model=EMBEDDING, messages=[{"role": "user", "content": "Hello"}])
    with pytest.raises(openai.BadRequestError, match="pooling=last"):
        client.embeddings.create(model=CHAT, input="Hello")


def test_vectors_come_as_floats_base64_of_tokens_and_with_fewer_dimensions(client: openai.OpenAI) -> None:
    floats = client.embeddings.create(model=EMBEDDING, input=TEXTS[0], encoding_format="float").data[0].embedding
    packed = client.embeddings.create(model=EMBEDDING, input=TEXTS[0]).data[0].embedding
    assert packed == pytest.approx(floats, abs=1e-7)
    short = client.embeddings.create(model=EMBEDDING, input=TEXTS[0], dimensions=32).data[0].embedding
    head = np.array(floats[:32])
    assert short == pytest.approx(list(head / np.linalg.norm(head)), abs=1e-6)
    tokens = [101, 7592, 2088, 102]  # as its tokenizer writes "hello world"
    by_tokens = client.embeddings.create(model=EMBEDDING, input=[tokens]).data[0].embedding
    by_text = client.embeddings.create(model=EMBEDDING, input="hello world").data[0].embedding
    assert by_tokens == pytest.approx(by_text, abs=1e-6)


def test_what_is_too_long_is_a_400_unless_it_may_be_cut(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="reads 256"):
        client.embeddings.create(model=EMBEDDING, input="word " * 300)
    cut = client.embeddings.create(model=EMBEDDING, input="word " * 300, extra_body={"truncate": True})
    assert cut.usage.prompt_tokens == 256


def test_documents_are_ranked_and_scored(server: Server) -> None:
    with httpx.Client(base_url=server.root, trust_env=False, timeout=100) as http:
        ranked = http.post("/v1/rerank", json={"query": TEXTS[0], "documents": TEXTS[1:], "model": EMBEDDING}).json()
        scored = http.post("/v1/score", json={"text_1": TEXTS[0], "text_2": TEXTS[1:], "model": EMBEDDING}).json()
    assert [result["index"] for result in ranked["results"]] == [0, 1]
    assert [one["score"] for one in scored["data"]] == [result["relevance_score"] for result in ranked["results"]]
