"""Our engine, from the environment that runs this."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import ClassVar

from .base import Peer
from .environment import run
from .weights import Weights
from .worker import Script
from .workloads import Workload

_IMPORT_COST = """
import re, sys
high = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
before = high()
import torch
print((high() - before) * 1024 / 1e6)
"""


class Ours(Peer):
    """SageLLM."""

    name = "SageLLM"
    formats: ClassVar = {"4-bit": ("Q4_1",), "8-bit": ("Q8_0",), "bf16": ("checkpoint",)}

    def setup(self) -> str:
        """Nothing to install; the version of the core."""
        return version("isagellm-core")

    def start(self, weights: Weights, workload: Workload | None) -> Script:
        """As :class:`~.base.Peer` has it."""
        options = {"model": str(weights.path), "threads": self._setting.threads, "streams": self.streams(workload)}
        return Script(sys.executable, "sagellm_llm.py", options)


def torch_import_mb() -> float:
    """MB that importing torch, and nothing else, adds to what a process has resident."""
    return float(run([sys.executable, "-c", _IMPORT_COST]))
