"""What is measured of a request, held against the clock of the client that asked."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from live import live, mock_plane
from test_operators import samples

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "x"}], "stream": True}
LABEL = "{model_name=mock}"


def says_something(line: str) -> bool:
    return line.startswith("data: {") and bool(json.loads(line[6:])["choices"][0]["delta"].get("content"))


def timed(http: httpx.Client, **fields: Any) -> list[float]:
    """Seconds from asking to each chunk with text, and last to the end of the stream."""
    began = time.perf_counter()
    with http.stream("POST", CHAT, json={**BODY, **fields}) as response:
        assert response.status_code == 200
        seen = [time.perf_counter() - began for line in response.iter_lines() if says_something(line)]
    return [*seen, time.perf_counter() - began]


def test_no_figure_is_longer_than_the_client_waited_and_their_parts_add_up() -> None:
    plane = mock_plane(text="abcdefgh", itl_ms=4.0)
    with live(plane) as gateway, httpx.Client(base_url=gateway.url, timeout=20, trust_env=False) as http:
        *tokens, whole = timed(http)
        got = samples(http)

    def total(name: str) -> float:
        assert got[f"sagellm:{name}_count{LABEL}"] >= 1
        return got[f"sagellm:{name}_sum{LABEL}"]

    first, all_of_it = total("time_to_first_token_seconds"), total("e2e_request_latency_seconds")
    queue, prefill, decode = (total(f"request_{part}_time_seconds") for part in ("queue", "prefill", "decode"))
    between = total("inter_token_latency_seconds")
    # The server's clock starts after the client's and stops before it.
    assert 0 < first <= tokens[0]
    assert first < all_of_it <= whole
    assert got[f"sagellm:inter_token_latency_seconds_count{LABEL}"] == len(tokens)  # the end of text is a token too
    assert 0 < between <= all_of_it - first
    assert total("request_time_per_output_token_seconds") * len(tokens) == pytest.approx(all_of_it - first)
    assert queue + prefill <= first
    assert total("request_inference_time_seconds") == pytest.approx(prefill + decode)
    assert queue + prefill + decode <= all_of_it


def test_the_wait_of_a_request_behind_another_is_its_queue_time() -> None:
    plane = mock_plane(text="a" * 100, itl_ms=5.0, max_num_seqs=1)
    with live(plane) as gateway, httpx.Client(base_url=gateway.url, timeout=20, trust_env=False) as http:
        began = time.perf_counter()
        with http.stream("POST", CHAT, json=BODY) as ahead:
            lines = ahead.iter_lines()
            next(filter(says_something, lines))  # it has its place, and half a second to go
            first = time.perf_counter() - began
            *tokens, _ = timed(http)
        got = samples(http)
    queue = got[f"sagellm:request_queue_time_seconds_sum{LABEL}"]
    assert 0.05 <= queue <= first + tokens[0], "it waited for the other's tokens, and no longer than its caller did"
