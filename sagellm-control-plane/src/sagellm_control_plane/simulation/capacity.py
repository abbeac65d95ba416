"""How fast a trace may arrive before a service level is lost, and what an infinite shared cache would allow."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace

from .report import Report
from .requests import SimRequest
from .simulator import Setup, Simulation
from .traces import scaled

SHARE = 0.9
"""Of the first tokens that must be in time."""
PRECISION = 0.01
MOST = 2.0**12
"""Speeds beyond this are not looked at: such a trace is too short to load these engines."""


def keeps(trace: Callable[[], Iterable[SimRequest]], setup: Setup, speed: float, requests: int) -> Report | None:
    """A run at ``speed`` times the trace's rate, or ``None`` when the service level is lost on the way."""
    most_late = int((1 - SHARE) * requests)
    report = Simulation(setup).run(scaled(trace(), speed), most_late=most_late)
    served = report.late + (requests - report.ttft.count)
    return report if served <= most_late else None


def capacity(
    trace: Callable[[], Iterable[SimRequest]], setup: Setup, requests: int, guess: float = 1.0
) -> tuple[float, Report | None]:
    """The highest multiple of the trace's rate at which the 90th percentile of TTFT stays within the objective.

    Args:
        trace: Makes the trace anew for each run.
        setup: Engines, policy, routing and the objective.
        requests: Of the trace; any that is refused or fails counts as late.
        guess: Where to look first.

    Returns:
        The multiple, to within 1 % below, and the run at it; 0 and ``None`` when even a thousandth of it is too fast.
    """
    low, high, best = 0.0, 0.0, None
    speed = guess
    while True:
        report = keeps(trace, setup, speed, requests)
        if report is not None:
            low, best = speed, report
            if high or speed >= MOST:
                break
            speed *= 1.5
        else:
            high = speed
            if low or speed < guess / 1000:
                break
            speed /= 1.5
    while low and high and high / low > 1 + PRECISION:
        middle = (low * high) ** 0.5
        report = keeps(trace, setup, middle, requests)
        if report is not None:
            low, best = middle, report
        else:
            high = middle
    return low, best


def as_if_shared(trace: Iterable[SimRequest]) -> Iterator[SimRequest]:
    """The trace as engines that share one infinite cache see it: what any prompt had before need not be computed.

    Served by the least queued tokens it bounds what routing by prefix can reach.
    """
    seen: set[Hashable] = set()
    for request in trace:
        hit = 0
        for block in request.block_hashes:
            if block not in seen:
                break
            hit += 1
        seen.update(request.block_hashes)
        request.prompt_tokens = max(1, request.prompt_tokens - hit * request.block_size)
        request.block_hashes = ()
        yield request


def bound(
    trace: Callable[[], Iterable[SimRequest]], setup: Setup, requests: int, guess: float = 1.0
) -> tuple[float, Report | None]:
    """:func:`capacity` with an infinite shared cache."""
    return capacity(lambda: as_if_shared(trace()), replace(setup, routing="least_queued"), requests, guess)
