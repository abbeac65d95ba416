"""The whole stack over the embedded model: command line, gateway, control plane, engine; as real clients use it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import openai
import psutil
import pytest

from conftest import Server

TURNS: list[dict[str, str]] = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def client(real_stack: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=real_stack.url, api_key="unused", max_retries=0, timeout=100) as made:
        yield made


def ask(client: openai.OpenAI, model: str, **options: object) -> openai.types.chat.ChatCompletion:
    return client.chat.completions.create(model=model, messages=TURNS, **options)  # type: ignore[call-overload,no-any-return]


def test_a_real_answer_comes_back(client: openai.OpenAI, real_stack: Server) -> None:
    answer = ask(client, real_stack.model, temperature=0, max_tokens=24)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_stream_says_what_the_whole_answer_says(client: openai.OpenAI, real_stack: Server) -> None:
    whole = ask(client, real_stack.model, temperature=0, max_tokens=24)
    chunks = list(
        client.chat.completions.create(
            model=real_stack.model,
            messages=TURNS,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == [whole.choices[0].finish_reason]
    assert chunks[-1].usage == whole.usage or chunks[-1].usage is not None
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI, real_stack: Server) -> None:
    answer = ask(client, real_stack.model, temperature=0, max_tokens=24, stop=["Paris"])
    assert "Paris" not in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_logprobs_name_the_tokens_that_were_produced(client: openai.OpenAI, real_stack: Server) -> None:
    answer = ask(client, real_stack.model, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert content is not None
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    for entry in content:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob)


def test_several_choices_are_independent_and_reproducible(client: openai.OpenAI, real_stack: Server) -> None:
    first = ask(client, real_stack.model, n=3, temperature=1.0, seed=7, max_tokens=12)
    again = ask(client, real_stack.model, n=3, temperature=1.0, seed=7, max_tokens=12)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in again.choices]


def test_requests_at_once_each_get_the_answer_they_get_alone(client: openai.OpenAI, real_stack: Server) -> None:
    prompts = [f"Count from {start} to {start + 3}:" for start in range(8)]

    def complete(prompt: str) -> str:
        done = client.completions.create(model=real_stack.model, prompt=prompt, temperature=0, max_tokens=16)
        return done.choices[0].text

    alone = [complete(prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(complete, prompts))
    assert together == alone


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**7}, "2048"),
        ({"stop": [""]}, "stop"),
        ({"extra_body": {"no_such_field": 1}}, "no_such_field"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"extra_body": {"guided_regex": "(a"}}, "guided_regex cannot be followed"),
    ],
)
def test_a_bad_request_is_a_400_that_names_the_value(
    client: openai.OpenAI, real_stack: Server, options: dict[str, object], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        ask(client, real_stack.model, **options)


def test_an_unknown_model_is_a_404_that_lists_the_known(client: openai.OpenAI, real_stack: Server) -> None:
    with pytest.raises(openai.NotFoundError, match=real_stack.model):
        ask(client, "no-such-model")


def test_a_prompt_beyond_the_context_is_a_400_naming_both_lengths(client: openai.OpenAI, real_stack: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="2048") as caught:
        client.completions.create(model=real_stack.model, prompt="word " * 4000, max_tokens=4)
    assert caught.value.code == "context_length_exceeded"


def test_a_closed_socket_frees_its_blocks(client: openai.OpenAI, real_stack: Server) -> None:
    parts = urlsplit(real_stack.url)
    body = json.dumps(
        {"model": real_stack.model, "prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True}
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    assert parts.hostname is not None
    assert parts.port is not None
    with socket.create_connection((parts.hostname, parts.port), timeout=LIMIT_S) as connection:
        connection.sendall(head.encode() + body)
        received = b""
        while b"data:" not in received:
            received += connection.recv(4096)
        until(lambda: metric(real_stack, "sagellm:num_requests_running") >= 1)
    until(lambda: metric(real_stack, "sagellm:num_requests_running") == 0)
    until(lambda: metric(real_stack, "sagellm:kv_cache_usage_perc") == 0)


def test_metrics_count_what_was_produced(serve: Callable[..., Server]) -> None:
    server = serve("serve", "smollm2-135m", "--max-model-len", "512")
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
        answer = ask(client, server.model, temperature=0, max_tokens=5, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    until(lambda: metric(server, "sagellm:generation_tokens_total") == 5)
    assert metric(server, "sagellm:prompt_tokens_total") == answer.usage.prompt_tokens
    assert metric(server, "sagellm:request_success_total") == 1
    assert metric(server, "sagellm:time_to_first_token_seconds_count") == 1
    assert metric(server, "sagellm:e2e_request_latency_seconds_sum") > metric(
        server, "sagellm:time_to_first_token_seconds_sum"
    )


def test_drafts_by_look_up_are_served_and_counted(serve: Callable[..., Server]) -> None:
    server = serve("serve", "smollm2-135m", "--max-model-len", "512", "--speculative", "ngram", "--dtype", "float32")
    listed = "Repeat exactly: " + ", ".join(f"{number} red apples and {number} green pears" for number in range(1, 9))
    with openai.OpenAI(base_url=server.url, api_key="unused", max_retries=0) as client:
        answer = client.chat.completions.create(
            model=server.model, messages=[{"role": "user", "content": listed}], temperature=0, max_tokens=120
        )
    assert answer.choices[0].message.content
    until(lambda: metric(server, "sagellm:spec_decode_num_draft_tokens_total") > 0)
    drafted = metric(server, "sagellm:spec_decode_num_draft_tokens_total")
    assert 0 < metric(server, "sagellm:spec_decode_num_accepted_tokens_total") <= drafted


def test_the_gateways_process_never_loads_torch(real_stack: Server) -> None:
    maps = "\n".join(entry.path for entry in psutil.Process(real_stack.process.pid).memory_maps())
    assert "libtorch" not in maps
    child_maps = [
        "\n".join(entry.path for entry in child.memory_maps())
        for child in psutil.Process(real_stack.process.pid).children(recursive=True)
    ]
    assert any("libtorch" in maps for maps in child_maps)


def test_killing_the_core_gives_the_client_an_error_and_turns_readiness_red(serve: Callable[..., Server]) -> None:
    server = serve("serve", "smollm2-135m", "--max-model-len", "2048")
    assert httpx.get(f"{server.root}/ready").status_code == 200
    with httpx.stream(
        "POST",
        f"{server.url}/completions",
        json={"model": server.model, "prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "stream": True},
        timeout=LIMIT_S,
    ) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data:"))
        core = next(child for child in psutil.Process(server.process.pid).children(recursive=True) if _has_torch(child))
        core.kill()
        rest = [line for line in lines if line.startswith("data:")]
    assert json.loads(rest[-1].removeprefix("data:")).get("error"), rest[-3:]
    until(lambda: httpx.get(f"{server.root}/ready").status_code == 503 or _restarted(server, core.pid))
    assert httpx.get(f"{server.root}/health").status_code == 200


def test_sigterm_lets_what_runs_finish(serve: Callable[..., Server]) -> None:
    server = serve("serve", "smollm2-135m", "--max-model-len", "2048")
    children = psutil.Process(server.process.pid).children(recursive=True)
    with httpx.stream(
        "POST",
        f"{server.url}/completions",
        json={"model": server.model, "prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": True},
        timeout=LIMIT_S,
    ) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data:"))
        server.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line.startswith("data:")]
    assert rest[-1] == "data: [DONE]"
    assert server.process.wait(timeout=LIMIT_S) == 0
    _, alive = psutil.wait_procs(children, timeout=LIMIT_S)
    assert not alive


def test_an_engine_server_and_a_gateway_before_it_speak_to_each_other(serve: Callable[..., Server]) -> None:
    engine = serve("engine", "smollm2-135m", "--max-model-len", "512", "--api-key", "between-us")
    gateway = serve("serve", "--attach", engine.url, "--attach-key", "between-us")
    with openai.OpenAI(base_url=gateway.url, api_key="unused", max_retries=0) as client:
        answer = ask(client, engine.model, temperature=0, max_tokens=16)
    assert "Paris" in (answer.choices[0].message.content or "")


def test_a_busy_port_is_said_before_a_model_is_loaded(
    mock_stack: Server, sagellm: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    port = str(urlsplit(mock_stack.url).port)
    done = sagellm("serve", "smollm2-135m", "--port", port)
    assert done.returncode == 1
    assert port in done.stderr


def _has_torch(process: psutil.Process) -> bool:
    return any("libtorch" in entry.path for entry in process.memory_maps())


def _restarted(server: Server, old: int) -> bool:
    return any(
        child.pid != old and _has_torch(child) for child in psutil.Process(server.process.pid).children(recursive=True)
    )


def metric(server: Server, name: str) -> float:
    """Sum of a metric over its labels."""
    text = httpx.get(f"{server.root}/metrics").text
    values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] == name]
    assert values, f"no {name} in {text}"
    return sum(map(float, values))


def until(condition: Callable[[], bool]) -> None:
    """Wait, for a bounded time, until ``condition`` holds."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)
