"""A histogram for what happens once a token: as Prometheus' own, at a fifth of the cost.

Belongs to one event loop, which also reads it, and so takes no locks; knows nothing of what it counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Series:
    """The observations under one label.

    Args:
        bounds: Upper bounds of the buckets, ascending and inclusive; a last one without a bound is added.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        """Sum of all observations."""

    def observe(self, value: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound and observations up to it, of each bucket."""
        return list(zip(map(floatToGoString, (*self._bounds, float("inf"))), accumulate(self._counts), strict=True))


class LoopHistogram(Collector):
    """Distributions by the value of one label.

    Args:
        name: Of the metric.
        what: It is measured, for people.
        label: Name of the label.
        bounds: As for :class:`Series`.
    """

    def __init__(self, name: str, what: str, label: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._what = what
        self._label = label
        self._bounds = tuple(bounds)
        self._series: dict[str, Series] = {}

    def labels(self, value: str) -> Series:
        """The series of one value of the label; made when it is first asked for."""
        series = self._series.get(value)
        if series is None:
            series = self._series[value] = Series(self._bounds)
        return series

    def collect(self) -> Iterator[Metric]:
        """Yield the metric with all its series."""
        family = HistogramMetricFamily(self._name, self._what, labels=[self._label])
        for value, series in self._series.items():
            family.add_metric([value], series.buckets(), series.total)
        yield family
