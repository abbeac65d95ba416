"""What is measured, in Prometheus' format, under the names vLLM made common with ``sagellm:`` in front.

Request figures are measured here, as the caller saw them, and carry the model's name. Engine figures are what engines
report, and carry the engine's id too; what an engine does not measure has no series. Knows nothing of HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sagellm_protocol import (
    DeltaEvent,
    EndEvent,
    EngineRecord,
    EngineState,
    EngineStats,
    ErrorCode,
    ErrorEvent,
    Metrics,
    PlaneStatus,
    StartEvent,
    StreamEvent,
)

from .histogram import LoopHistogram, Series

# Upper bounds in seconds, those of vLLM with finer ones below.
_LONG = (1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, *_LONG, 160.0, 640.0, 2560.0)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, *_LONG)
_MINUTES = (10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
_WHOLE = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, *_MINUTES)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

_Read = Callable[[EngineStats], float | None]
_GAUGES: tuple[tuple[str, str, _Read], ...] = (
    ("num_requests_running", "Sequences that hold KV blocks.", lambda stats: stats.running),
    ("num_requests_waiting", "Sequences that wait in the engine.", lambda stats: stats.waiting),
    ("kv_cache_usage_perc", "Share of the KV blocks that sequences hold; 1 is all.", lambda stats: stats.kv_usage),
    ("kv_offload_host_bytes", "Blocks kept in host memory.", lambda stats: stats.host_kv_bytes),
    ("kv_offload_disk_bytes", "Blocks kept on disk.", lambda stats: stats.disk_kv_bytes),
    ("adapters", "LoRA adapters served.", lambda stats: stats.adapters),
    ("adapters_in_memory", "LoRA adapters whose weights are in memory.", lambda stats: stats.adapters_in_memory),
    ("heartbeat_age_seconds", "Since the engine's core last proved alive.", lambda stats: stats.heartbeat_age_s),
)
_COUNTERS: tuple[tuple[str, str, _Read], ...] = (
    ("prompt_tokens", "Prompt tokens, as the engine counts them.", lambda stats: stats.prompt_tokens),
    ("generation_tokens", "Tokens produced.", lambda stats: stats.generation_tokens),
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", lambda s: s.prefix_queried_tokens),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache.", lambda stats: stats.prefix_hit_tokens),
    ("prefix_cache_host_hits", "Those of them that came back from host memory.", lambda stats: stats.host_hit_tokens),
    ("prefix_cache_disk_hits", "Those of them that came back from disk.", lambda stats: stats.disk_hit_tokens),
    ("prefix_cache_evictions", "Blocks whose content was given up for another.", lambda stats: stats.evicted_blocks),
    ("kv_offload_stored_blocks", "Blocks written to host memory or disk.", lambda stats: stats.offloaded_blocks),
    ("kv_offload_loaded_blocks", "Blocks brought back from there.", lambda stats: stats.loaded_blocks),
    ("num_preemptions", "Times a sequence lost its blocks to others.", lambda stats: stats.preemptions),
    ("spec_decode_num_draft_tokens", "Draft tokens verified.", lambda stats: stats.drafted_tokens),
    ("spec_decode_num_accepted_tokens", "Draft tokens accepted.", lambda stats: stats.accepted_tokens),
    ("engine_steps", "Steps the engine made.", lambda stats: stats.steps),
)


UNKNOWN = "unknown"
"""Stands for the names of models that never took a request."""


class Meters:
    """The series of one gateway."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.served: set[str] = set()
        """Models that have taken a request; other names are callers' inventions and would make endless series."""

        def histogram(name: str, what: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(f"sagellm:{name}", what, ["model_name"], registry=self._registry, buckets=tuple(buckets))

        self.first_token = LoopHistogram(
            "sagellm:time_to_first_token_seconds", "Request received to first token.", "model_name", _FIRST
        )
        self._registry.register(self.first_token)
        self.between_tokens = LoopHistogram(
            "sagellm:inter_token_latency_seconds",
            "Between two events with tokens of a choice.",
            "model_name",
            _BETWEEN,
        )
        self._registry.register(self.between_tokens)
        self.per_token = histogram(
            "request_time_per_output_token_seconds", "Mean time per token after the first, of a request.", _BETWEEN
        )
        self.whole = histogram("e2e_request_latency_seconds", "Request received to answer complete.", _WHOLE)
        self.queue = histogram("request_queue_time_seconds", "Waited in the engine, by its own account.", _WHOLE)
        self.inference = histogram(
            "request_inference_time_seconds", "First scheduled to complete, by the engine's account.", _WHOLE
        )
        self.prefill = histogram(
            "request_prefill_time_seconds", "First scheduled to first token, by the engine's account.", _WHOLE
        )
        self.decode = histogram(
            "request_decode_time_seconds", "First token to complete, by the engine's account.", _WHOLE
        )
        self.prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS)
        self.generation = histogram("request_generation_tokens", "Tokens produced for a request.", _TOKENS)
        self.endings = Counter(
            "sagellm:request_success",
            "Choices that ended, by reason; a request that was aborted or failed counts once.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        self.http = Counter(
            "sagellm:http_requests",
            "HTTP requests answered.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self.http_in_flight = Gauge(
            "sagellm:http_requests_in_flight", "HTTP requests being answered.", registry=self._registry
        )

    @contextmanager
    def request(self, model: str) -> Iterator[RequestMeter]:
        """Measure one request; leaving without having seen its end counts it as aborted."""
        meter = RequestMeter(self, model)
        try:
            yield meter
        finally:
            meter.close()

    def exposition(self, status: PlaneStatus) -> bytes:
        """All series, in Prometheus' text format.

        Args:
            status: The control plane now.
        """
        engines = CollectorRegistry()
        engines.register(_Status(status))
        return generate_latest(self._registry) + generate_latest(engines)


class RequestMeter:
    """Follows one request's events.

    Args:
        meters: Where figures go.
        model: The model asked for.
    """

    def __init__(self, meters: Meters, model: str) -> None:
        self._meters = meters
        self._model = model
        self._began = time.perf_counter()
        self._first: float | None = None
        self._last: dict[int, float] = {}
        self._kept: tuple[Series, Series] | None = None
        self._ended = False

    def saw(self, event: StreamEvent) -> None:
        """Take in the next event."""
        if isinstance(event, DeltaEvent):
            if event.token_ids:
                self._tokens(event.index)
        elif isinstance(event, StartEvent):
            self._meters.served.add(self._model)
            # Looked up while the engine works rather than between its first token and the caller.
            self._series()
        elif isinstance(event, EndEvent):
            self._end(event)
        elif isinstance(event, ErrorEvent):
            self._ended = True
            self._count("abort" if event.error.code is ErrorCode.CANCELLED else "error")

    def close(self) -> None:
        """Nothing more comes."""
        if not self._ended:
            self._ended = True
            self._count("abort")

    def _tokens(self, index: int) -> None:
        now = time.perf_counter()
        to_first, between = self._series()
        if self._first is None:
            self._first = now
            to_first.observe(now - self._began)
        elif (last := self._last.get(index)) is not None:
            between.observe(now - last)
        self._last[index] = now

    def _series(self) -> tuple[Series, Series]:
        if self._kept is None:
            meters, model = self._meters, self._model
            self._kept = meters.first_token.labels(model), meters.between_tokens.labels(model)
        return self._kept

    def _end(self, event: EndEvent) -> None:
        self._ended = True
        now, meters, model = time.perf_counter(), self._meters, self._model
        meters.whole.labels(model).observe(now - self._began)
        meters.prompt.labels(model).observe(event.usage.prompt_tokens)
        meters.generation.labels(model).observe(event.usage.completion_tokens)
        self._phases(event.metrics)
        each = event.usage.completion_tokens / max(1, len(event.choices))
        if self._first is not None and each > 1:
            meters.per_token.labels(model).observe((now - self._first) / (each - 1))
        for choice in event.choices:
            self._count(choice.finish_reason.value)

    def _phases(self, told: Metrics) -> None:
        """Where the engine's time went; what it does not tell has no figure."""
        meters, model = self._meters, self._model
        if told.queue_ms is not None:
            meters.queue.labels(model).observe(told.queue_ms / 1000)
        if told.queue_ms is not None and told.e2e_ms is not None:
            meters.inference.labels(model).observe((told.e2e_ms - told.queue_ms) / 1000)
        if told.queue_ms is not None and told.ttft_ms is not None:
            meters.prefill.labels(model).observe((told.ttft_ms - told.queue_ms) / 1000)
        if told.ttft_ms is not None and told.e2e_ms is not None:
            meters.decode.labels(model).observe((told.e2e_ms - told.ttft_ms) / 1000)

    def _count(self, reason: str) -> None:
        model = self._model if self._model in self._meters.served else UNKNOWN
        self._meters.endings.labels(model, reason).inc()


class _Status(Collector):
    """A control plane's status as series."""

    def __init__(self, status: PlaneStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield every series."""
        status = self._status
        up = GaugeMetricFamily("sagellm:engine_up", "Whether the engine takes requests.", labels=_LABELS)
        for record in status.engines:
            up.add_metric(_labels(record), float(record.info.state is EngineState.READY))
        yield up
        circuit = GaugeMetricFamily(
            "sagellm:engine_circuit_open", "Whether requests are kept from an engine that failed many.", labels=_LABELS
        )
        for record in status.engines:
            if record.circuit is not None:
                circuit.add_metric(_labels(record), float(record.circuit != "closed"))
        yield circuit
        for name, what, read in _GAUGES:
            gauge = GaugeMetricFamily(f"sagellm:{name}", what, labels=_LABELS)
            for record in status.engines:
                if record.stats is not None and (value := read(record.stats)) is not None:
                    gauge.add_metric(_labels(record), value)
            yield gauge
        for name, what, read in _COUNTERS:
            counter = CounterMetricFamily(f"sagellm:{name}", what, labels=_LABELS)
            for record in status.engines:
                if record.stats is not None and (value := read(record.stats)) is not None:
                    counter.add_metric(_labels(record), value)
            yield counter
        yield GaugeMetricFamily("sagellm:queue_depth", "Requests that wait for an engine.", value=status.queued)
        yield GaugeMetricFamily("sagellm:requests_in_flight", "Accepted and not ended.", value=status.in_flight)
        yield CounterMetricFamily("sagellm:requests_accepted", "Requests accepted.", value=status.accepted)
        for name, what, total in _OF_THE_PLANE:
            yield CounterMetricFamily(f"sagellm:{name}", what, value=total(status))
        endings = CounterMetricFamily("sagellm:requests_ended", "Accepted requests that ended.", labels=["ending"])
        for ending, count in status.ended.items():
            endings.add_metric([ending.value], count)
        yield endings


_OF_THE_PLANE: tuple[tuple[str, str, Callable[[PlaneStatus], int]], ...] = (
    ("requests_refused_early", "Requests refused before they were accepted.", lambda s: s.refused_early),
    ("requests_retried", "Attempts begun on another engine before the first output.", lambda s: s.retried),
    ("requests_resumed", "Streams gone on with on another engine.", lambda s: s.resumed),
    ("requests_hedged", "Requests given to a second engine because the first was slow.", lambda s: s.hedged),
    ("hedges_won", "Requests that the second engine answered.", lambda s: s.hedges_won),
    ("circuits_opened", "Times that engines were shut out because they failed.", lambda s: s.circuits_opened),
)
_LABELS = ["model_name", "engine"]


def _labels(record: EngineRecord) -> list[str]:
    info = record.info
    return [info.served_names[0] if info.served_names else info.model, info.engine_id]
