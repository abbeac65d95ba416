"""A request's spans, as OpenTelemetry's SDK receives them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fake_model import fake_engine, fake_spec, write_tokenizer
from sagellm_protocol.events import EndEvent
from sagellm_protocol.requests import Request
from sagellm_protocol.testing.check import read_all

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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


async def answered(folder: Path, **fields: Any) -> tuple[EndEvent | None, Request]:
    engine = fake_engine(write_tokenizer(folder), fake_spec("inline"))
    await engine.start()
    asked = {"request_id": "r", "trace_id": "their-id", "model": "fake", "prompt": "abc", **fields}
    request = Request.model_validate(asked)
    events = await read_all(engine.generate(request))
    await engine.stop()
    return events[-1] if isinstance(events[-1], EndEvent) else None, request


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


async def test_a_request_is_a_span_of_its_callers_trace_made_of_wait_prompt_and_output(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    end, _ = await answered(tmp_path, traceparent=PARENT, sampling={"max_tokens": 6, "temperature": 0.5})
    assert end is not None
    told = by_name(spans)
    whole, queue, prefill, decode = (told[name] for name in ("llm_request", "queue", "prefill", "decode"))
    assert whole.parent is not None
    assert f"{whole.parent.trace_id:032x}-{whole.parent.span_id:016x}" == PARENT[3:52]
    for part in (queue, prefill, decode):
        assert part.parent is not None
        assert part.parent.span_id == whole.context.span_id
    assert whole.start_time == queue.start_time
    assert queue.end_time == prefill.start_time
    assert prefill.end_time == decode.start_time
    assert decode.end_time == whole.end_time
    attributes = dict(whole.attributes or {})
    assert attributes["gen_ai.request.id"] == "their-id"
    assert attributes["gen_ai.request.max_tokens"] == 6
    assert attributes["gen_ai.usage.input_tokens"] == 3
    assert attributes["gen_ai.usage.output_tokens"] == end.usage.completion_tokens
    assert attributes["gen_ai.response.finish_reasons"] == tuple(choice.finish_reason.value for choice in end.choices)
    metrics = end.metrics
    for name, figure in (
        ("time_in_queue", metrics.queue_ms),
        ("time_to_first_token", metrics.ttft_ms),
        ("e2e", metrics.e2e_ms),
    ):
        assert attributes[f"gen_ai.latency.{name}"] == pytest.approx((figure or 0) / 1e3)
    assert whole.end_time is not None
    assert whole.start_time is not None
    assert (whole.end_time - whole.start_time) / 1e6 == pytest.approx(metrics.e2e_ms, abs=1.0)


async def test_a_request_without_a_trace_has_one_of_its_own(spans: InMemorySpanExporter, tmp_path: Path) -> None:
    await answered(tmp_path, sampling={"max_tokens": 2})
    assert by_name(spans)["llm_request"].parent is None


async def test_a_request_that_fails_says_so_and_is_told_as_far_as_it_came(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    end, _ = await answered(tmp_path, prompt="abc~")
    assert end is None
    told = by_name(spans)
    assert told["llm_request"].status.description == "failed"
    assert "decode" not in told


async def test_what_is_not_sampled_is_not_told(spans: InMemorySpanExporter, tmp_path: Path) -> None:
    await answered(tmp_path, traceparent=PARENT[:-1] + "0", sampling={"max_tokens": 2})
    assert not spans.get_finished_spans()


def test_the_engine_brings_no_opentelemetry_in() -> None:
    code = "import sys, sagellm_core.front.engine; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
