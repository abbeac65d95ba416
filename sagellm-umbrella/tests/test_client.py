"""Both clients, against the served mock stack and against servers that misbehave."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from conftest import Server
from sagellm import AsyncInferenceClient, ErrorCode, SageLLMError, UnifiedInferenceClient

TURNS = [{"role": "user", "content": "Say something."}]


@pytest.fixture
def client(mock_stack: Server) -> Iterator[UnifiedInferenceClient]:
    with UnifiedInferenceClient.create(mock_stack.url) as made:
        yield made


def test_chat_answers_openais_json(client: UnifiedInferenceClient) -> None:
    answer = client.chat(TURNS, max_tokens=8)
    assert answer["object"] == "chat.completion"
    assert "mock" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] <= 8


def test_the_streamed_pieces_are_the_whole_answer(client: UnifiedInferenceClient) -> None:
    whole = client.chat(TURNS, max_tokens=12, temperature=0)["choices"][0]["message"]["content"]
    pieces = [
        choice["delta"].get("content") or ""
        for chunk in client.chat_stream(TURNS, max_tokens=12, temperature=0)
        for choice in chunk["choices"]
    ]
    assert "".join(pieces) == whole
    assert len(pieces) > 2


def test_generate_continues_a_text(client: UnifiedInferenceClient) -> None:
    whole = client.generate("Once upon", max_tokens=5, temperature=0)
    streamed = list(client.generate_stream("Once upon", max_tokens=5, temperature=0))
    assert whole["object"] == "text_completion"
    text = "".join(choice["text"] for chunk in streamed for choice in chunk["choices"])
    assert text == whole["choices"][0]["text"]


def test_embed_gives_a_vector_for_each_text(client: UnifiedInferenceClient) -> None:
    answer = client.embed(["one", "two", "three"])
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    assert len({tuple(entry["embedding"]) for entry in answer["data"]}) == 3


def test_models_says_that_the_mock_is_one(client: UnifiedInferenceClient, mock_stack: Server) -> None:
    listed = client.models()["data"]
    assert [entry["id"] for entry in listed] == [mock_stack.model]
    assert listed[0]["mock"] is True


def test_a_refusal_carries_the_servers_code_parameter_and_words(client: UnifiedInferenceClient) -> None:
    with pytest.raises(SageLLMError, match="top_p") as caught:
        client.chat(TURNS, top_p=7)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    with pytest.raises(SageLLMError, match="no-such-model") as caught:
        client.chat(TURNS, model="no-such-model")
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND


def test_streaming_is_asked_for_by_its_own_method(client: UnifiedInferenceClient) -> None:
    with pytest.raises(SageLLMError, match="chat_stream"):
        client.chat(TURNS, stream=True)
    with pytest.raises(SageLLMError, match="generate_stream"):
        client.generate("x", stream=True)


def test_one_text_is_no_list_of_texts(client: UnifiedInferenceClient) -> None:
    with pytest.raises(SageLLMError, match="list of texts"):
        client.embed("text")


def test_localhost_is_asked_at_its_ipv4_address() -> None:
    assert UnifiedInferenceClient.create("http://localhost:1234/v1/").base_url == "http://127.0.0.1:1234/v1"


def test_an_address_without_a_path_means_the_api_there() -> None:
    assert UnifiedInferenceClient("http://10.0.0.1:1234/").base_url == "http://10.0.0.1:1234/v1"
    assert UnifiedInferenceClient("http://10.0.0.1:1234/llm/v1").base_url == "http://10.0.0.1:1234/llm/v1"


def test_without_an_address_it_asks_sages_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAGELLM_BASE_URL", raising=False)
    assert UnifiedInferenceClient.create().base_url == "http://127.0.0.1:8889/v1"
    assert UnifiedInferenceClient.create_with_control_plane().base_url == "http://127.0.0.1:8889/v1"


def test_an_address_without_a_scheme_is_refused_with_an_example() -> None:
    with pytest.raises(SageLLMError, match=r"127\.0\.0\.1:8889/v1"):
        UnifiedInferenceClient("somewhere:80")


def test_a_session_of_another_library_is_refused_by_name() -> None:
    with pytest.raises(SageLLMError, match=r"builtins\.object"):
        UnifiedInferenceClient("http://127.0.0.1:1/v1", session=object())  # type: ignore[arg-type]


def test_a_session_passed_in_is_used_and_left_open(mock_stack: Server) -> None:
    with httpx.Client() as session:
        with UnifiedInferenceClient.create(mock_stack.url, session=session) as client:
            client.models()
        assert not session.is_closed


def test_a_server_that_is_not_there_says_how_to_start_one(unused_port: int) -> None:
    url = f"http://127.0.0.1:{unused_port}/v1"
    with UnifiedInferenceClient(url) as client, pytest.raises(SageLLMError, match="sagellm serve") as caught:
        client.models()
    assert caught.value.code is ErrorCode.UNAVAILABLE


async def test_a_server_that_says_nothing_in_time_is_not_said_to_be_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            UnifiedInferenceClient(url, timeout=0.05) as client,
            pytest.raises(SageLLMError, match=r"0\.05 s.*max_tokens") as caught,
        ):
            client.models()
        async with AsyncInferenceClient(url, timeout=0.05) as twin:
            with pytest.raises(SageLLMError, match=r"0\.05 s"):
                [chunk async for chunk in twin.chat_stream(TURNS, "any")]
    assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED


def test_a_stream_that_is_cut_is_an_error_and_no_end(canned: Callable[[bytes], str]) -> None:
    url = canned(b'data: {"choices": [{"index": 0, "delta": {"content": "half"}}]}\n\n')
    with UnifiedInferenceClient(url, "any") as client:
        stream = client.chat_stream(TURNS)
        assert next(stream)["choices"][0]["delta"]["content"] == "half"
        with pytest.raises(SageLLMError, match="before it was complete"):
            next(stream)


def test_an_error_in_mid_stream_is_raised(canned: Callable[[bytes], str]) -> None:
    url = canned(b'data: {"error": {"message": "engine lost", "code": "engine_failed"}}\n\n')
    with UnifiedInferenceClient(url, "any") as client, pytest.raises(SageLLMError, match="engine lost") as caught:
        list(client.chat_stream(TURNS))
    assert caught.value.code is ErrorCode.ENGINE_FAILED


def test_a_key_is_sent_and_a_wrong_one_refused(serve: Callable[..., Server]) -> None:
    server = serve("serve", "--engine", "mock", "--api-key", "a-key-of-ours")
    with UnifiedInferenceClient.create(server.url, api_key="a-key-of-ours") as client:
        assert client.models()["data"]
    with UnifiedInferenceClient.create(server.url, api_key="another") as client, pytest.raises(SageLLMError) as caught:
        client.models()
    assert caught.value.code is ErrorCode.UNAUTHENTICATED


async def test_the_async_twin_says_the_same(mock_stack: Server, client: UnifiedInferenceClient) -> None:
    expected = client.chat(TURNS, max_tokens=6, temperature=0)["choices"][0]["message"]["content"]
    async with AsyncInferenceClient.create(mock_stack.url) as twin:
        whole, vectors = await asyncio.gather(
            twin.chat(TURNS, max_tokens=6, temperature=0), twin.embed(["one"], mock_stack.model)
        )
        pieces = [
            choice["delta"].get("content") or ""
            async for chunk in twin.chat_stream(TURNS, max_tokens=6, temperature=0)
            for choice in chunk["choices"]
        ]
        listed = await twin.models()
    assert whole["choices"][0]["message"]["content"] == expected == "".join(pieces)
    assert len(vectors["data"]) == 1
    assert listed["data"][0]["id"] == mock_stack.model


def test_both_clients_offer_the_same_calls() -> None:
    def public(kind: Any) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(UnifiedInferenceClient) == public(AsyncInferenceClient)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def canned() -> Iterator[Callable[[bytes], str]]:
    """Serve one fixed body as an event stream, and close the connection behind it."""
    servers: list[http.server.HTTPServer] = []

    def serve(body: bytes) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return None

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
