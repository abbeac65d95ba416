"""Spans of OpenTelemetry, where the program has set it up, and W3C's ``traceparent`` handed along where it has not.

Nothing here imports OpenTelemetry: a program that wants spans has set its SDK up, and with that its API is there; all
others pay nothing. Knows nothing of exporters.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from .requests import TRACEPARENT, EmbedRequest, Request, ScoreRequest

R = TypeVar("R", Request, EmbedRequest, ScoreRequest)
Attribute = str | bool | int | float | tuple[str, ...]

_NAME = "sagellm"
# Goes with the task, as context variables do.
_PARENT: ContextVar[str | None] = ContextVar("sagellm_traceparent", default=None)


@dataclass(frozen=True)
class Span:
    """Something that is over.

    Attributes:
        name: Of it.
        began_s, ended_s: Monotonic seconds of this process.
        attributes: What is told of it.
        children: What it was made of.
        error: Why it failed, if it did.
    """

    name: str
    began_s: float
    ended_s: float
    attributes: Mapping[str, Attribute]
    children: tuple[Span, ...] = ()
    error: str | None = None


def enabled() -> bool:
    """Whether spans go anywhere."""
    return _opentelemetry() is not None


def record(span: Span, traceparent: str | None) -> None:
    """Tell OpenTelemetry of a span and its children.

    Args:
        span: It has ended.
        traceparent: What it is a part of; without, a trace of its own.
    """
    trace = _opentelemetry()
    if trace is not None:
        offset_ns = time.time_ns() - time.monotonic_ns()
        _record(trace, span, _context(trace, traceparent), offset_ns, trace.SpanKind.SERVER)


@contextmanager
def serving(name: str, traceparent: str | None) -> Iterator[Any]:
    """Serve a request within the block: what it asks of others becomes a part of the same trace.

    Args:
        name: Of its span.
        traceparent: As the caller sent it; what is no such value is left out.

    Yields:
        OpenTelemetry's span, or ``None`` without OpenTelemetry.
    """
    if traceparent is not None and re.fullmatch(TRACEPARENT, traceparent) is None:
        traceparent = None
    trace = _opentelemetry()
    if trace is None:
        token = _PARENT.set(traceparent)
        try:
            yield None
        finally:
            _PARENT.reset(token)
        return
    tracer = trace.get_tracer(_NAME)
    with tracer.start_as_current_span(name, context=_context(trace, traceparent), kind=trace.SpanKind.SERVER) as span:
        made = span.get_span_context()
        own = f"00-{made.trace_id:032x}-{made.span_id:016x}-{int(made.trace_flags):02x}" if made.is_valid else None
        token = _PARENT.set(own or traceparent)
        try:
            yield span
        finally:
            _PARENT.reset(token)


def traced(request: R) -> R:
    """A request that says which trace it is a part of."""
    parent = _PARENT.get()
    return request if parent is None else request.model_copy(update={"traceparent": parent})


def _record(trace: Any, span: Span, context: Any, offset_ns: int, kind: Any) -> None:
    made = trace.get_tracer(_NAME).start_span(
        span.name,
        context=context,
        kind=kind,
        attributes=dict(span.attributes),
        start_time=int(span.began_s * 1e9) + offset_ns,
    )
    if span.error is not None:
        made.set_status(trace.StatusCode.ERROR, span.error)
    within = trace.set_span_in_context(made, context)
    for child in span.children:
        _record(trace, child, within, offset_ns, trace.SpanKind.INTERNAL)
    made.end(end_time=int(span.ended_s * 1e9) + offset_ns)


def _context(trace: Any, traceparent: str | None) -> Any:
    """OpenTelemetry's context for what is a part of ``traceparent``."""
    parent = trace.INVALID_SPAN
    if traceparent is not None:
        _, trace_id, span_id, flags = traceparent.split("-")
        there = trace.SpanContext(
            int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16))
        )
        parent = trace.NonRecordingSpan(there)
    return trace.set_span_in_context(parent)


def _opentelemetry() -> Any:
    """OpenTelemetry's API, if the program has it and has said where spans go."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    # Some frameworks bring the API in for themselves: until somebody sets a provider, it stands for none.
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    return trace
