"""Asks engines in turn, so that a busy minute is busy for all of them, and keeps what they gave.

All engines of one class of weights are loaded at once and idle while another works. Starts and memory are measured
afterwards, with an engine alone on the machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from .base import Peer
from .errors import PeerError
from .results import MEMORY_MANY, MEMORY_ONE, START, Row
from .weights import Weights
from .worker import Worker
from .workloads import WORKLOADS, Workload

SETTLE_S = 0.5
"""Between two engines: threads that spin for a while after their work are then asleep."""


@dataclass
class Entrant:
    """An engine with the weights it takes part with, and the row it fills."""

    peer: Peer
    weights: Weights
    row: Row


def rates(entrants: Sequence[Entrant], workloads: Sequence[Workload], rounds: int) -> None:
    """Measure tokens a second: a round to warm up, then those that count, each engine once a round and workload."""
    running: list[tuple[Entrant, Worker]] = []
    try:
        for entrant in entrants:
            _note(f"loading {entrant.row.engine}, {entrant.row.format}")
            try:
                running.append((entrant, entrant.peer.start(entrant.weights, None)))
            except PeerError as error:
                entrant.row.failures.update(dict.fromkeys((one.key for one in workloads), str(error)))
        for number in range(rounds + 1):
            for workload in workloads:
                # Everybody follows everybody else at some time.
                turn = number % len(running) if running else 0
                for entrant, worker in running[turn:] + running[:turn]:
                    _attempt(entrant.row, workload.key, number > 0, partial(_rate, entrant, worker, workload, number))
    finally:
        for _, worker in running:
            worker.close()


def starts(entrants: Sequence[Entrant], rounds: int) -> None:
    """Measure process start to first token, weights in the page cache; and memory of (a)."""
    for number in range(rounds):
        for entrant in entrants:
            entrant.weights.read()
            time.sleep(SETTLE_S)
            _start(entrant, WORKLOADS["a"], number)


def memory(entrants: Sequence[Entrant]) -> None:
    """Measure memory of (c), in an engine that has done nothing else."""
    for entrant in entrants:
        _attempt(entrant.row, MEMORY_MANY, True, partial(_peak, entrant, WORKLOADS["c"]))


def _rate(entrant: Entrant, worker: Worker, workload: Workload, seed: int) -> float:
    time.sleep(SETTLE_S)
    return entrant.peer.rate(worker, entrant.weights, workload, seed)


def _start(entrant: Entrant, workload: Workload, seed: int) -> None:
    try:
        worker = entrant.peer.start(entrant.weights, workload)
        try:
            worker.generate(entrant.peer.prompts(workload, seed), 1)
            entrant.row.add(START, time.perf_counter() - worker.begun)
            worker.generate(entrant.peer.prompts(workload, seed + 500), workload.output)
            entrant.row.add(MEMORY_ONE, worker.peak_mb())
        finally:
            worker.close()
    except PeerError as error:
        entrant.row.failures.update({START: str(error), MEMORY_ONE: str(error)})


def _peak(entrant: Entrant, workload: Workload) -> float:
    worker = entrant.peer.start(entrant.weights, workload)
    try:
        worker.generate(entrant.peer.prompts(workload, 0), workload.output)
        return worker.peak_mb()
    finally:
        worker.close()


def _attempt(row: Row, name: str, counts: bool, measure: Callable[[], float]) -> None:
    """Take one figure; what failed once is not tried again."""
    if name in row.failures:
        return
    try:
        value = measure()
    except PeerError as error:
        row.failures[name] = str(error)
        _note(f"  {name} {row.engine}, {row.format}: failed: {error}")
        return
    _note(f"  {name} {row.engine}, {row.format}: {value:.1f}{'' if counts else ' (warming up)'}")
    if counts:
        row.add(name, value)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
