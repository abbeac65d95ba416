"""The GPUs of this machine and what of their memory is promised to engines that were started here.

Figures are the driver's own; where there is no GPU, the answer is that there is none.
"""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import TypedDict

from sagellm_protocol import ErrorCode, SageLLMError

from . import nvml
from .legacy.errors import BadValue

log = logging.getLogger(__name__)
GIB = 2**30
OVERHEAD = 1.2
"""Of what weights take: activations, buffers, and keys and values enough to begin with."""
_BYTES = {
    "fp32": 4.0,
    "float32": 4.0,
    "fp8": 1.0,
    "int8": 1.0,
    "8bit": 1.0,
    "w8": 1.0,
    "awq": 0.5,
    "gptq": 0.5,
    "int4": 0.5,
    "4bit": 0.5,
    "q4": 0.5,
    "fp4": 0.5,
}
"""Of a parameter, by what a model's name says of its numbers; 2 where it says nothing."""
_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")
_WEIGHTS = ("*.safetensors", "*.gguf", "*.bin")


class GPUStatus(TypedDict):
    """One GPU. Sizes are GiB; ``memory_free_gb`` is what is neither used nor reserved."""

    index: int
    name: str
    memory_total_gb: float
    memory_used_gb: float
    memory_free_gb: float
    memory_reserved_gb: float
    utilization: float | None
    is_mock: bool
    """Never: figures are the driver's."""


class GPUResourceManager:
    """Finds GPUs and keeps account of reservations; may be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reserved: dict[int, float] = {}
        self.reason: str | None = None
        """Why no GPU was found when one was last looked for."""

    def close(self) -> None:
        """Forget reservations."""
        with self._lock:
            self._reserved.clear()

    def get_system_status(self) -> list[GPUStatus]:
        """The GPUs that this process may use; empty where there is none, and :attr:`reason` says why."""
        with self._lock:
            return self._status()

    def check_resource_availability(self, required_memory_gb: float, count: int = 1) -> list[int]:
        """GPUs with so much memory free on each, the emptiest first; empty unless there are ``count``.

        Raises:
            ValueError: For a value out of range.
        """
        with self._lock:
            return self._fitting(required_memory_gb, count)[:count]

    def allocate_resources(self, required_memory_gb: float, count: int = 1) -> list[int]:
        """Reserve so much memory on each of ``count`` GPUs.

        Raises:
            SageLLMError: ``UNAVAILABLE`` when there are not so many, with what is free on each.
            ValueError: For a value out of range.
        """
        with self._lock:
            chosen = self._fitting(required_memory_gb, count)[:count]
            if not chosen:
                free = ", ".join(f"GPU {gpu['index']}: {gpu['memory_free_gb']:.1f} GiB" for gpu in self._status())
                raise SageLLMError(
                    ErrorCode.UNAVAILABLE,
                    f"{count} GPUs with {required_memory_gb:g} GiB free are needed; there are"
                    f" {free or f'none ({self.reason})'}",
                )
            for index in chosen:
                self._reserved[index] = self._reserved.get(index, 0.0) + required_memory_gb
            return chosen

    def release_resources(self, gpu_ids: list[int], memory_gb: float) -> None:
        """Take a reservation back; what was not reserved is not owed."""
        with self._lock:
            for index in gpu_ids:
                left = self._reserved.pop(index, 0.0) - memory_gb
                if left > 1e-9:
                    self._reserved[index] = left

    def reservations(self) -> dict[int, float]:
        """GiB reserved, by GPU."""
        with self._lock:
            return dict(self._reserved)

    def estimate_model_memory(self, model_name: str, tensor_parallel_size: int = 1) -> float:
        """GiB that a model takes on each of its GPUs: its weights' files where they are here, else what its name says.

        Raises:
            ValueError: Neither tells, or the size is under 1.
        """
        if tensor_parallel_size < 1:
            raise BadValue(
                f"tensor_parallel_size must be 1 or more (got {tensor_parallel_size})", "tensor_parallel_size"
            )
        weights = weight_bytes(model_name)
        if weights is None:
            raise BadValue(
                f"how large {model_name!r} is can be told neither from files nor from its name; give its memory",
                "required_memory_gb",
            )
        return weights * OVERHEAD / GIB / tensor_parallel_size

    def _status(self) -> list[GPUStatus]:
        try:
            found = nvml.visible(nvml.gpus())
            self.reason = None if found else "CUDA_VISIBLE_DEVICES leaves none"
        except SageLLMError as error:
            self.reason, found = error.message, []
            log.debug("no GPU: %s", error.message)
        return [self._told(gpu) for gpu in found]

    def _told(self, gpu: nvml.Gpu) -> GPUStatus:
        reserved = self._reserved.get(gpu.index, 0.0)
        total, used = gpu.total_bytes / GIB, gpu.used_bytes / GIB
        # What is reserved may be in use already: the larger counts, not both.
        free = max(0.0, total - max(used, reserved, total - gpu.free_bytes / GIB))
        return GPUStatus(
            index=gpu.index,
            name=gpu.name,
            memory_total_gb=total,
            memory_used_gb=used,
            memory_free_gb=free,
            memory_reserved_gb=reserved,
            utilization=gpu.utilization,
            is_mock=False,
        )

    def _fitting(self, required_memory_gb: float, count: int) -> list[int]:
        if not required_memory_gb >= 0:
            raise BadValue(f"required_memory_gb must be 0 or more (got {required_memory_gb!r})", "required_memory_gb")
        if count < 1:
            raise BadValue(f"count must be 1 or more (got {count!r})", "count")
        able = [gpu for gpu in self._status() if gpu["memory_free_gb"] >= required_memory_gb]
        able.sort(key=lambda gpu: (-gpu["memory_free_gb"], gpu["index"]))
        return [gpu["index"] for gpu in able] if len(able) >= count else []


def weight_bytes(model_name: str) -> float | None:
    """Bytes of a model's weights: of the files of a path, else by a name (``…-8x7B-AWQ``); ``None`` if unknown."""
    path = Path(model_name).expanduser()
    if path.is_file():
        return float(path.stat().st_size)
    if path.is_dir():
        for pattern in _WEIGHTS:
            found = sum(file.stat().st_size for file in path.glob(pattern))
            if found:
                return float(found)
    parameters = parameters_of(model_name)
    if parameters is None:
        return None
    name = model_name.lower()
    return parameters * next((size for word, size in _BYTES.items() if word in name), 2.0)


def parameters_of(model_name: str) -> float | None:
    """Parameters by a model's name, as ``7b``, ``0.5B``, ``135m`` or ``8x7b`` in it; ``None`` if it has none."""
    found = _SIZE.search(Path(model_name).name.lower())
    if found is None:
        return None
    times, size, unit = found.groups()
    return int(times or 1) * float(size) * (1e9 if unit == "b" else 1e6)
