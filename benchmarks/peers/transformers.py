"""``transformers``: the ``generate`` everybody starts from."""

from __future__ import annotations

from typing import ClassVar

from .base import Peer
from .environment import Environment
from .weights import Weights
from .worker import Script
from .workloads import Workload

TORCH = "torch==2.13.0"
"""Named exactly, and first: the index offers a CPU build of this one."""


class Transformers(Peer):
    """``generate`` in BF16 on torch's CPU build."""

    name = "transformers"
    formats: ClassVar = {"bf16": ("checkpoint",)}

    def setup(self) -> str:
        """As :class:`~.base.Peer` has it."""
        self._environment = Environment(self._setting.home / "transformers" / "env")
        self._environment.install([TORCH], ["transformers"])
        return self._environment.versions("transformers")[0]

    def start(self, weights: Weights, workload: Workload | None) -> Script:
        """As :class:`~.base.Peer` has it."""
        options = {"model": str(weights.path), "threads": self._setting.threads}
        return Script(self._environment.python, "hf_generate.py", options)
