"""Scores of prompts and beam search over the embedded model, as evaluation harnesses and vLLM's users ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from conftest import Server

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def http(real_stack: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=real_stack.url, timeout=100, trust_env=False) as made:
        yield made


def complete(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post("/completions", json={"prompt": PROMPT, "temperature": 0, "seed": 7, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_text_is_scored_as_it_was_produced(http: httpx.Client) -> None:
    produced = complete(http, max_tokens=6, logprobs=1, return_token_ids=True)["choices"][0]
    ids = produced["prompt_token_ids"] + produced["token_ids"]
    scored = complete(http, prompt=ids, max_tokens=0, logprobs=1, echo=True)
    [choice] = scored["choices"]
    told = choice["logprobs"]
    assert choice["text"] == PROMPT + produced["text"]
    assert scored["usage"]["completion_tokens"] == 0
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["top_logprobs"]) == len(ids)
    assert told["token_logprobs"][0] is None
    assert told["token_logprobs"][-6:] == pytest.approx(produced["logprobs"]["token_logprobs"], abs=0.05)
    # What a harness looks at to say that a greedy answer would have been this one.
    for name, alternatives in list(zip(told["tokens"], told["top_logprobs"], strict=True))[-6:]:
        assert max(alternatives, key=alternatives.__getitem__) == name


def test_one_token_more_may_be_produced_behind_an_echo(http: httpx.Client) -> None:
    [choice] = complete(http, max_tokens=1, logprobs=1, echo=True)["choices"]
    assert choice["text"].startswith(PROMPT)
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert len(choice["logprobs"]["token_logprobs"]) > 1


def test_beams_are_answered_best_first_and_the_best_is_no_worse_than_greedy(http: httpx.Client) -> None:
    greedy = complete(http, max_tokens=8, logprobs=0)["choices"][0]
    found = complete(http, max_tokens=8, n=3, use_beam_search=True, length_penalty=0, logprobs=0)["choices"]
    sums = [sum(choice["logprobs"]["token_logprobs"]) for choice in found]
    assert len({choice["text"] for choice in found}) == 3
    assert sums == sorted(sums, reverse=True)
    assert sums[0] >= sum(greedy["logprobs"]["token_logprobs"]) - 0.05
