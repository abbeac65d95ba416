"""Sends spans of OpenTelemetry to a collector, for the commands that are asked to.

Knows the SDK and nothing of what the spans are about.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sagellm_protocol import ErrorCode, SageLLMError


@contextmanager
def exporting(endpoint: str | None) -> Iterator[None]:
    """Send spans to ``endpoint`` within the block; what is left is sent at its end.

    Args:
        endpoint: Where an OTLP collector takes traces over HTTP; with none, nothing is done.

    Raises:
        SageLLMError: ``NOT_INSTALLED`` without the extra.
    """
    if endpoint is None:
        yield
        return
    trace, resources, sdk, export, otlp = map(_module, _MODULES)
    provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": "sagellm"}))
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


_MODULES = (
    "opentelemetry.trace",
    "opentelemetry.sdk.resources",
    "opentelemetry.sdk.trace",
    "opentelemetry.sdk.trace.export",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SageLLMError(
            ErrorCode.NOT_INSTALLED,
            f"traces need {error.name}, which is not installed: pip install 'isagellm[otel]'",
            "otlp_traces_endpoint",
        ) from error
