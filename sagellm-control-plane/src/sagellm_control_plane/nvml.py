"""NVIDIA's GPUs on this machine as plain values, read through nvidia-ml-py (the extra ``nvidia``).

A machine without GPUs, a driver or the package has none, with the reason. Knows nothing of what runs on them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagellm_protocol import ErrorCode, SageLLMError

PCI = Path("/sys/bus/pci/devices")


@dataclass(frozen=True)
class Gpu:
    """One GPU at one moment."""

    index: int
    name: str
    uuid: str
    bus_id: str
    total_bytes: int
    used_bytes: int
    free_bytes: int
    utilization: float | None
    """Share of the last sampling period in which something ran, 0 to 1; ``None`` where it is not told."""
    numa_node: int | None
    nvlink_peers: tuple[int, ...]
    """Indices of those it reaches over NVLink, directly or through switches."""


def gpus() -> Sequence[Gpu]:
    """All there are.

    Raises:
        SageLLMError: ``NOT_INSTALLED`` without nvidia-ml-py; ``UNAVAILABLE`` without a driver, or when it fails.
    """
    with _library() as nvml:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [_gpu(nvml, index, handles) for index in range(len(handles))]


@contextmanager
def _library() -> Iterator[Any]:
    try:
        import pynvml
    except ImportError:
        raise SageLLMError(
            ErrorCode.NOT_INSTALLED,
            "GPUs are found through nvidia-ml-py: pip install 'isagellm-control-plane[nvidia]'",
        ) from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise SageLLMError(ErrorCode.UNAVAILABLE, f"no NVIDIA driver answers: {error}") from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise SageLLMError(ErrorCode.UNAVAILABLE, f"NVIDIA's driver failed: {error}") from error
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, index: int, handles: Sequence[Any]) -> Gpu:
    handle = handles[index]
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    bus_id = _text(nvml.nvmlDeviceGetPciInfo(handle).busId)
    return Gpu(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        bus_id=bus_id,
        total_bytes=int(memory.total),
        used_bytes=int(memory.used),
        free_bytes=int(memory.free),
        utilization=_utilization(nvml, handle),
        numa_node=numa_node(bus_id),
        nvlink_peers=tuple(
            other for other in range(len(handles)) if other != index and _linked(nvml, handle, handles[other])
        ),
    )


def _utilization(nvml: Any, handle: Any) -> float | None:
    try:
        return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    except nvml.NVMLError:
        return None


def _linked(nvml: Any, one: Any, other: Any) -> bool:
    try:
        status = nvml.nvmlDeviceGetP2PStatus(one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
    except nvml.NVMLError:
        return False
    return bool(status == nvml.NVML_P2P_STATUS_OK)


def numa_node(bus_id: str) -> int | None:
    """The NUMA node of a PCI device, as the kernel tells it; ``None`` where it does not.

    Args:
        bus_id: As NVML writes it, with a domain of eight digits.
    """
    domain, _, rest = bus_id.lower().partition(":")
    try:
        node = int((PCI / f"{domain[-4:]}:{rest}" / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def visible(found: Sequence[Gpu]) -> Sequence[Gpu]:
    """Those that ``CUDA_VISIBLE_DEVICES`` leaves to this process, by index or UUID; all where it is not set."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return found
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    return [gpu for gpu in found if any(name == str(gpu.index) or gpu.uuid.startswith(name) for name in names)]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
