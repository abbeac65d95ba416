"""Traces go through the gateway, with OpenTelemetry and without; ids of requests are in its log and the plane's."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from live import Live, default_plane, live
from planes import ScriptedPlane
from sagellm_protocol import EngineSpec, ErrorCode, ErrorEvent, Request, SageLLMError
from sagellm_protocol.logs import RequestIds, named
from sagellm_protocol.tracing import serving, traced
from scripts import delta, end, error, says, start

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "x"}]}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    yield exporter
    exporter.clear()


@pytest.fixture(scope="module")
def scripted() -> Iterator[Live]:
    with live(ScriptedPlane) as serving:
        yield serving


def post(scripted: Live, *events: Any, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    scripted.plane.script = says(*events)
    return httpx.post(scripted.url + CHAT, json={**BODY, **fields}, headers=headers, timeout=20, trust_env=False)


def only(spans: InMemorySpanExporter, scripted: Live) -> ReadableSpan:
    """The one span; it ends a moment after its answer."""
    scripted.until(lambda: bool(spans.get_finished_spans()))
    [span] = spans.get_finished_spans()
    return span


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_a_span_of_the_callers_trace_and_the_engine_is_told_of_it(
    spans: InMemorySpanExporter, scripted: Live, stream: bool
) -> None:
    headers = {"traceparent": PARENT, "x-request-id": "their-id"}
    assert post(scripted, start(), delta("a"), end(), headers=headers, stream=stream).status_code == 200
    span = only(spans, scripted)
    assert span.name == f"POST {CHAT}"
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN
    attributes = dict(span.attributes or {})
    assert attributes["sagellm.request_id"] == "their-id"
    assert (attributes["http.route"], attributes["http.response.status_code"]) == (CHAT, 200)
    asked: Request = scripted.plane.asked[-1]
    assert asked.traceparent == f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert asked.trace_id == "their-id"


def test_an_answer_that_failed_says_so(spans: InMemorySpanExporter, scripted: Live) -> None:
    assert post(scripted, error(ErrorCode.ENGINE_FAILED)).status_code == 502
    span = only(spans, scripted)
    assert span.parent is None
    assert dict(span.attributes or {})["error.type"] == "502"


def test_probes_make_no_spans(spans: InMemorySpanExporter, scripted: Live) -> None:
    for path in ("/health", "/ready", "/metrics"):
        httpx.get(scripted.url + path, trust_env=False)
    assert not spans.get_finished_spans()


@pytest.mark.parametrize("given", ["", "nonsense", f"00-{'0' * 32}-{SPAN}-01", f"01-{TRACE}-{SPAN}-01", PARENT + "-x"])
def test_what_is_no_traceparent_begins_a_trace(spans: InMemorySpanExporter, scripted: Live, given: str) -> None:
    assert post(scripted, start(), delta("a"), end(), headers={"traceparent": given}).status_code == 200
    span = only(spans, scripted)
    assert span.parent is None


def test_without_opentelemetry_the_callers_span_is_handed_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    hand_along()


def test_without_a_provider_the_callers_span_is_handed_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    hand_along()


def hand_along() -> None:
    request = Request(request_id="r", model="m", prompt="x")
    with serving("x", PARENT) as span:
        assert span is None
        assert traced(request).traceparent == PARENT
    with serving("x", "nonsense"):
        assert traced(request) is request
    assert traced(request) is request


def test_the_planes_lines_name_the_request_that_they_are_about(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.handler.addFilter(RequestIds())
    seen: list[str | None] = []

    async def broken(request: Request) -> Any:
        seen.append(named())
        logging.getLogger("sagellm_control_plane.relay").error("engine e0 raised")
        yield ErrorEvent(request_id=request.request_id, error=SageLLMError(ErrorCode.ENGINE_FAILED, "x").info())

    with live(lambda: ScriptedPlane(broken)) as gateway:
        for name in ("id-1", "id-2"):
            httpx.post(gateway.url + CHAT, json=BODY, headers={"x-request-id": name}, trust_env=False)
    assert seen == ["id-1", "id-2"]
    told = [record.__dict__["request_id"] for record in caplog.records if record.getMessage() == "engine e0 raised"]
    assert told == ["id-1", "id-2"]


def test_an_engine_behind_the_real_plane_is_told_the_trace_and_the_id(spans: InMemorySpanExporter) -> None:
    spec = EngineSpec(engine="mock", model="mock", options={"text": "hi"})
    with live(default_plane, engine=spec) as gateway:
        asked = {**BODY, "model": "mock"}
        headers = {"traceparent": PARENT, "x-request-id": "id-9"}
        answer = httpx.post(gateway.url + CHAT, json=asked, headers=headers, timeout=20, trust_env=False)
    assert answer.headers["x-request-id"] == "id-9"
    assert [f"{span.context.trace_id:032x}" for span in spans.get_finished_spans()] == [TRACE]
