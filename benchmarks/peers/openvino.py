"""OpenVINO GenAI, which reads GGUF files itself."""

from __future__ import annotations

from typing import ClassVar

from .base import Peer
from .environment import Environment
from .weights import Weights
from .worker import Script
from .workloads import Workload


class OpenVINO(Peer):
    """``LLMPipeline`` and ``ContinuousBatchingPipeline`` of ``openvino-genai``."""

    name = "OpenVINO GenAI"
    formats: ClassVar = {"4-bit": ("Q4_1",), "8-bit": ("Q8_0",), "bf16": ("F16",)}

    def setup(self) -> str:
        """As :class:`~.base.Peer` has it."""
        self._environment = Environment(self._setting.home / "openvino" / "env")
        self._environment.install(["openvino-genai"])
        return self._environment.versions("openvino-genai")[0]

    def start(self, weights: Weights, workload: Workload | None) -> Script:
        """As :class:`~.base.Peer` has it."""
        options = {"model": str(weights.path), "threads": self._setting.threads, "streams": self.streams(workload)}
        return Script(self._environment.python, "openvino_pipelines.py", options)
