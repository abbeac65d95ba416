"""Spans reach a collector, where a command is asked to send them to one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sagellm import tracing
from sagellm_protocol import ErrorCode, SageLLMError

ANSWER = """
import sys
from sagellm.tracing import exporting
from sagellm_protocol.tracing import enabled, serving

assert not enabled()
with exporting(sys.argv[1]), serving("POST /v1/chat/completions", None) as span:
    assert enabled()
    span.set_attribute("sagellm.request_id", "id-of-the-caller")
"""


class Collector(BaseHTTPRequestHandler):
    received: list[tuple[str, bytes]] = []  # noqa: RUF012 - a server makes a handler for each request

    def do_POST(self) -> None:
        self.received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces"
        server.shutdown()
        thread.join(10)


def test_what_is_left_is_sent_before_the_command_ends(collector: str) -> None:
    subprocess.run([sys.executable, "-c", ANSWER, collector], check=True, timeout=60)
    [(path, body)] = Collector.received
    assert path == "/v1/traces"
    for text in (b"POST /v1/chat/completions", b"id-of-the-caller", b"service.name"):
        assert text in body


def test_without_an_address_nothing_is_loaded() -> None:
    code = """
import sys
from sagellm.tracing import exporting
with exporting(None):
    sys.exit("opentelemetry" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SageLLMError) as refused, tracing.exporting("http://127.0.0.1:1/v1/traces"):
        pass
    assert refused.value.code is ErrorCode.NOT_INSTALLED
    assert "isagellm[otel]" in refused.value.message
