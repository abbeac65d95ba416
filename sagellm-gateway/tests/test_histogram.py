"""The histogram of what happens once a token, beside Prometheus' own."""

from __future__ import annotations

from hypothesis import given, strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from sagellm_gateway.histogram import LoopHistogram

BOUNDS = (0.001, 0.01, 0.5, 1.0, 20.0)
VALUES = st.one_of(st.sampled_from(BOUNDS), st.floats(0, 100))


@given(st.lists(st.tuples(st.sampled_from(["a", 'b"\n']), VALUES)))
def test_it_is_written_as_prometheus_writes_its_own(seen: list[tuple[str, float]]) -> None:
    registry, reference = CollectorRegistry(), CollectorRegistry()
    ours = LoopHistogram("waited_seconds", "How long.", "who", BOUNDS)
    theirs = Histogram("waited_seconds", "How long.", ["who"], buckets=BOUNDS, registry=reference)
    registry.register(ours)
    for who, value in seen:
        ours.labels(who).observe(value)
        theirs.labels(who).observe(value)
    assert _lines(registry) == _lines(reference)


def _lines(registry: CollectorRegistry) -> list[bytes]:
    """All but when a series was made, which the wait between tokens does without."""
    return [line for line in generate_latest(registry).splitlines() if b"_created" not in line]
