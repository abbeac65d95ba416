"""Errors of HTTP itself, ids, limits, keys, prefixes, browsers."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator

import httpx
import pytest

from live import WAIT_S, Live, live, mock_plane
from planes import ScriptedPlane
from scripts import delta, end, says, start

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


def shape(response: httpx.Response) -> dict[str, object]:
    """The error of an answer, which has OpenAI's shape."""
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error, dict)
    return error


def until(connection: socket.socket, sign: bytes) -> None:
    """Read until a sign has come."""
    got = b""
    while sign not in got:
        data = connection.recv(65536)
        assert data, got
        got += data


def test_a_route_that_is_unknown_is_an_error_of_openai(http: httpx.Client) -> None:
    for path in ("/nope", "/v1/chat", "/v1/chat/completions/", "/", "/docs", "/v1/chat/completions/x"):
        response = http.get(path)
        assert response.status_code == 404, path
        assert shape(response)["code"] == "unknown_url"


def test_a_wrong_method_names_the_right_ones(http: httpx.Client) -> None:
    response = http.get(CHAT)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert shape(response)["code"] == "method_not_allowed"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"{" * 10_000, b"[" * 10_000])
def test_a_body_that_is_no_json_object_is_a_400(http: httpx.Client, content: bytes) -> None:
    response = http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert shape(response)["type"] == "invalid_request_error"


def test_a_body_of_another_kind_is_refused_by_name(http: httpx.Client) -> None:
    response = http.post(CHAT, content=json.dumps(BODY), headers={"content-type": "text/plain"})
    assert response.status_code == 415
    assert "text/plain" in str(shape(response)["message"])
    response = http.post(CHAT, content=json.dumps(BODY), headers={"content-type": "application/json; charset=utf-8"})
    assert response.status_code == 200


def test_an_id_is_minted_unless_the_caller_has_one(http: httpx.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    minted = http.get("/health").headers["x-request-id"]
    assert len(minted) == 32
    assert http.get("/nope", headers={"x-request-id": "e"}).headers["x-request-id"] == "e"
    for unfit in ("a b", "x" * 200, "é".encode()):
        assert http.get("/health", headers={"x-request-id": unfit}).headers["x-request-id"] != unfit


def test_the_callers_id_is_the_trace_and_never_the_key() -> None:
    plane = ScriptedPlane(says(start(), delta("a"), end()))
    with live(lambda: plane) as gateway:
        for _ in range(2):
            httpx.post(gateway.url + CHAT, json=BODY, headers={"x-request-id": "same"}, trust_env=False, timeout=WAIT_S)
    assert [request.trace_id for request in plane.asked] == ["same", "same"]
    assert len({request.request_id for request in plane.asked}) == 2


def test_the_prefix_of_sages_gateway_is_tolerated(http: httpx.Client) -> None:
    assert http.post("/api" + CHAT, json=BODY).status_code == 200
    assert http.get("/api/v1/models").status_code == 200
    assert http.get("/api/api/v1/models").status_code == 404
    assert http.get("/apiv1/models").status_code == 404


def test_the_description_names_every_route_and_body(http: httpx.Client) -> None:
    described = http.get("/openapi.json").json()
    schemas = described["components"]["schemas"]
    for path in (CHAT, "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/score"):
        content = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"]["$ref"].rpartition("/")[2] in schemas
        assert set(schemas["Error"]["properties"]["error"]["required"]) == set(shape(http.post(path, content=b"{")))
    for operations in described["paths"].values():
        for operation in operations.values():
            assert set(operation["responses"]) == {"200", "default"}
            assert operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    references = json.dumps(described).split('"$ref": "#/components/schemas/')[1:]
    assert {reference.partition('"')[0] for reference in references} <= set(schemas)


@pytest.fixture(scope="module")
def small() -> Iterator[Live]:
    with live(mock_plane(text="ok"), max_body_bytes=1000, max_header_bytes=2048) as serving:
        yield serving


def test_a_body_that_says_it_is_too_large_is_not_read(small: Live) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1001\r\n\r\n"
    connection = small.raw(head.encode())
    assert b"413" in connection.recv(65536)
    connection.close()


def test_a_body_that_turns_out_too_large_is_refused(small: Live) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    response = httpx.post(
        small.url + CHAT,
        content=chunks(),
        headers={"content-type": "application/json"},
        trust_env=False,
        timeout=WAIT_S,
    )
    assert response.status_code == 413
    assert shape(response)["code"] == "payload_too_large"


def test_headers_that_do_not_end_are_hung_up_on(small: Live) -> None:
    connection = small.raw(b"GET /health HTTP/1.1\r\nx-long: " + b"a" * 4096)
    assert connection.recv(65536).startswith(b"HTTP/1.1 431")
    assert connection.recv(65536) == b""
    connection.close()
    assert httpx.get(f"{small.url}/health", trust_env=False, timeout=WAIT_S).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HTTP/1.1\r\nx-slow: ",
        f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{{".encode(),
    ],
)
def test_a_caller_that_does_not_finish_its_request_is_hung_up_on(sent: bytes) -> None:
    with live(mock_plane(text="ok"), read_timeout_s=0.2) as gateway:
        connection = gateway.raw(sent)
        until(connection, b" 408 ")
        connection.close()


def test_a_second_request_that_is_not_finished_is_hung_up_on_too() -> None:
    with live(mock_plane(text="ok"), read_timeout_s=0.2) as gateway:
        connection = gateway.raw(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        until(connection, b'"ok"')
        connection.sendall(b"GET /he")
        until(connection, b" 408 ")
        connection.close()


def test_a_request_that_takes_long_to_answer_is_not_one_that_takes_long_to_come() -> None:
    with live(mock_plane(text="xxxxxxxx", itl_ms=100.0), read_timeout_s=0.2) as gateway:
        assert (
            httpx.post(gateway.url + CHAT, json=BODY | {"max_tokens": 8}, trust_env=False, timeout=WAIT_S).status_code
            == 200
        )


def test_large_bodies_do_not_count_as_headers() -> None:
    with (
        live(mock_plane(text="ok"), max_header_bytes=2048) as gateway,
        httpx.Client(base_url=gateway.url, trust_env=False, timeout=WAIT_S) as client,
    ):
        for _ in range(3):
            assert client.post("/v1/embeddings", json={"input": ["x" * 1000] * 200}).status_code == 200


def test_requests_that_follow_each_other_on_a_connection_have_limits_of_their_own(small: Live) -> None:
    with httpx.Client(base_url=small.url, trust_env=False) as client:
        for _ in range(20):
            assert client.post(CHAT, json=BODY, headers={"x-some": "a" * 500}).status_code == 200


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    with live(
        mock_plane(text="ok"), api_keys="first,second", cors_origins="https://console.example", host="127.0.0.1"
    ) as serving:
        yield serving


def test_every_path_wants_a_key_unless_it_is_open(locked: Live) -> None:
    with httpx.Client(base_url=locked.url, trust_env=False, timeout=WAIT_S) as client:
        described = client.get("/openapi.json", headers={"authorization": "Bearer first"}).json()["paths"]
        assert CHAT in described
        for path in [*described, "/openapi.json", "/nope", "/metrics/", "//metrics", "/api/metrics", "/HEALTH"]:
            response = client.get(path.replace("{model}", "mock"))
            if path in {"/health", "/ready"}:
                assert response.status_code == 200
            else:
                assert response.status_code == 401, path
                assert response.headers["www-authenticate"] == "Bearer"
                assert shape(response)["code"] == "invalid_api_key"
        assert client.get("/api/health").status_code == 200


def test_any_of_the_keys_opens(locked: Live) -> None:
    with httpx.Client(base_url=locked.url, trust_env=False, timeout=WAIT_S) as client:
        for key in ("first", "second"):
            assert client.post(CHAT, json=BODY, headers={"authorization": f"Bearer {key}"}).status_code == 200
            assert client.get("/metrics", headers={"authorization": f"bearer {key}"}).status_code == 200
        for header in (
            "Bearer third",
            "Bearer",
            "first",
            "Basic first",
            "Bearer firs",
            "Bearer first,second",
        ):
            assert client.post(CHAT, json=BODY, headers={"authorization": header}).status_code == 401


def test_a_page_of_a_listed_origin_may_call(locked: Live) -> None:
    ask = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    with httpx.Client(base_url=locked.url, trust_env=False, timeout=WAIT_S) as client:
        listed = client.options(CHAT, headers={**ask, "origin": "https://console.example"})
        assert listed.headers["access-control-allow-origin"] == "https://console.example"
        other = client.options(CHAT, headers={**ask, "origin": "https://elsewhere.example"})
        assert "access-control-allow-origin" not in other.headers
        # A refusal too must be readable by the page that asked.
        refused = client.post(CHAT, json=BODY, headers={"origin": "https://console.example"})
        assert (refused.status_code, "access-control-allow-origin" in refused.headers) == (401, True)


def test_a_page_that_points_its_own_name_at_this_machine_is_kept_out(http: httpx.Client) -> None:
    for host in ("evil.example", "evil.example:8889", "127.0.0.1.evil.example", "localhost.evil.example", ""):
        response = http.get("/v1/models", headers={"host": host})
        assert response.status_code == 403, host
        assert "allowed_hosts" in str(shape(response)["message"])
    for host in ("localhost", "LOCALHOST:1", "localhost.:1", "chat.localhost", "127.0.0.1:8889", "[::1]:8889", "[::1]"):
        assert http.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "settings", [{"allowed_hosts": "box.example"}, {"allowed_hosts": "*"}, {"allow_unauthenticated": True}]
)
def test_other_names_are_served_where_the_operator_says_so(settings: dict[str, object]) -> None:
    with live(mock_plane(text="ok"), **settings) as gateway:
        for host in ("box.example:80", "127.0.0.1"):
            response = httpx.get(f"{gateway.url}/v1/models", headers={"host": host}, trust_env=False, timeout=WAIT_S)
            assert response.status_code == 200


def test_a_page_of_another_origin_cannot_put_this_machine_to_work(http: httpx.Client) -> None:
    # What a page can send without asking first: a body of no declared type.
    for origin in ("https://evil.example", "http://localhost.evil.example:80", "http://[2001:db8::1]", "null"):
        response = http.post(CHAT, content=json.dumps(BODY), headers={"origin": origin})
        assert response.status_code == 403, origin
        assert "cors_origins" in str(shape(response)["message"])
    for origin in (
        "http://localhost:3000",
        "http://127.0.0.1",
        "https://app.localhost",
        "http://[::1]:5",
        "tauri://app",
    ):
        assert http.post(CHAT, content=json.dumps(BODY), headers={"origin": origin}).status_code == 200, origin


def test_pages_that_the_operator_names_may_call() -> None:
    with live(mock_plane(text="ok"), cors_origins="https://App.example") as gateway:
        for origin, status in (("https://app.example", 200), ("https://evil.example", 403)):
            headers = {"origin": origin}
            response = httpx.post(gateway.url + CHAT, json=BODY, headers=headers, trust_env=False, timeout=WAIT_S)
            assert response.status_code == status


def test_probes_may_ask_for_heads_alone(http: httpx.Client) -> None:
    for path in ("/health", "/ready"):
        response = http.head(path)
        assert response.status_code == 200
        assert response.content == b""


def test_browsers_of_other_origins_are_not_let_in_by_default(http: httpx.Client) -> None:
    response = http.get("/v1/models", headers={"origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in response.headers


def test_a_defect_amid_a_stream_is_its_last_event(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: object) -> object:
        yield start()
        yield delta("a")
        raise ZeroDivisionError("a defect")

    with live(lambda: ScriptedPlane(broken)) as gateway, caplog.at_level(logging.ERROR):
        response = httpx.post(gateway.url + CHAT, json={**BODY, "stream": True}, trust_env=False, timeout=WAIT_S)
    assert response.status_code == 200
    *_, last, rest = response.text.split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal"
    assert rest == ""
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_defect_is_a_500_with_an_id_and_is_logged_once(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: object) -> object:
        raise ZeroDivisionError("a defect")
        yield

    with live(lambda: ScriptedPlane(broken)) as gateway, caplog.at_level(logging.ERROR):
        response = httpx.post(
            gateway.url + CHAT, json={**BODY, "stream": stream}, headers={"x-request-id": "id-7"}, trust_env=False
        )
    assert response.status_code == 500
    assert "id-7" in str(shape(response)["message"])
    assert "a defect" not in response.text
    assert response.headers["x-request-id"] == "id-7"
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert "id-7" in record.getMessage()
