"""What a peer is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.engine import Prompts

from .weights import Weights
from .worker import Worker
from .workloads import MOST_STREAMS, Counts, Workload


@dataclass(frozen=True)
class Setting:
    """What holds for all peers of a run.

    Attributes:
        home: Folder for what peers install and build.
        threads: Threads each may compute with.
        vocab_size: Tokens of prompts are below it.
    """

    home: Path
    threads: int
    vocab_size: int


class Peer(ABC):
    """One engine. Made once a run; its workers come and go.

    Attributes:
        name: As the table gives it.
        formats: Weights it is measured with, by class (``4-bit``, ``8-bit``, ``bf16``).
    """

    name: str
    formats: ClassVar[dict[str, tuple[str, ...]]]

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    @abstractmethod
    def setup(self) -> str:
        """Install what it needs, unless it is there; its version.

        Raises:
            PeerError: It cannot be installed here.
        """

    @abstractmethod
    def start(self, weights: Weights, workload: Workload | None) -> Worker:
        """Start an engine; it may still be loading when this returns.

        Args:
            weights: What it shall load.
            workload: The only one it will be asked for, or ``None`` for all of them.
        """

    def streams(self, workload: Workload | None) -> int:
        """Requests at once that a worker for ``workload`` has to be ready for."""
        return workload.streams if workload else MOST_STREAMS

    def prompts(self, workload: Workload, seed: int) -> Prompts:
        """The prompts of one round."""
        return workload.prompts(self._setting.vocab_size, seed)

    def rate(self, worker: Worker, weights: Weights, workload: Workload, seed: int) -> float:
        """Tokens a second of one round.

        Raises:
            PeerError: It did not do the work.
        """
        took = worker.generate(self.prompts(workload, seed), workload.output)
        if workload.counts is Counts.OUTPUT:
            return workload.streams * workload.output / took
        if workload.counts is Counts.PREFILL:
            return workload.prompt / took
        # Other prompts, of a seed that no round has: the same ones might be found in a prefix cache.
        first = worker.generate(self.prompts(workload, seed + 500), 1)
        return (workload.output - 1) / (took - first)
