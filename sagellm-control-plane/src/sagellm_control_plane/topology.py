"""How this machine's GPUs are joined to each other and to its memory, as NVIDIA's driver and the kernel tell it."""

from __future__ import annotations

import hashlib
import socket
import uuid
from pathlib import Path
from typing import Any

from sagellm_protocol import SageLLMError

from . import nvml
from .legacy.errors import BadValue
from .types import ExecutionInstance

GIB = 2**30
_MACHINE = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


class TopologyDetector:
    """Looks at this machine."""

    @staticmethod
    def get_machine_id() -> str:
        """The same for whatever runs on this machine, and for nothing else; tells nothing of it."""
        for path in _MACHINE:
            try:
                told = path.read_text().strip()
            except OSError:
                continue
            if told:
                # The id is confidential by its own documentation, so what leaves here is a digest of it.
                return hashlib.sha256(f"{told}:{socket.gethostname()}".encode()).hexdigest()[:16]
        return hashlib.sha256(f"{uuid.getnode()}:{socket.gethostname()}".encode()).hexdigest()[:16]

    @staticmethod
    def detect_nvlink_topology() -> dict[int, list[int]]:
        """GPUs that each GPU reaches over NVLink; empty where there is none."""
        return {gpu.index: list(gpu.nvlink_peers) for gpu in _found()}

    @staticmethod
    def detect_numa_nodes() -> dict[int, int]:
        """The NUMA node of each GPU of which it is known."""
        return {gpu.index: gpu.numa_node for gpu in _found() if gpu.numa_node is not None}

    @staticmethod
    def get_gpu_bus_id(gpu_id: int) -> str | None:
        """A GPU's address on the PCI bus; ``None`` if there is no such GPU."""
        return next((gpu.bus_id for gpu in _found() if gpu.index == gpu_id), None)

    @staticmethod
    def create_instance_with_topology(
        instance_id: str, gpu_id: int, host: str, port: int, model_name: str, **kwargs: Any
    ) -> ExecutionInstance:
        """An instance that knows where its GPU is.

        Its NVLink peers are the ids that :meth:`auto_detect_local_instances` gives under the same base.

        Args:
            instance_id: Its id.
            gpu_id: Its GPU.
            host: Its host.
            port: Its port.
            model_name: What it serves.
            kwargs: Other fields of :class:`ExecutionInstance`, which go first.

        Raises:
            ValueError: There is no such GPU.
        """
        found = {gpu.index: gpu for gpu in _found()}
        if gpu_id not in found:
            there = ", ".join(map(str, found)) or "none"
            raise BadValue(f"there is no GPU {gpu_id} on this machine; there are {there}", "gpu_id")
        base = instance_id.removesuffix(f"-{gpu_id}")
        return _instance(instance_id, base, found[gpu_id], host, port, model_name, kwargs)

    @staticmethod
    def auto_detect_local_instances(
        base_instance_id: str, host: str, base_port: int, model_name: str, **kwargs: Any
    ) -> list[ExecutionInstance]:
        """An instance for each GPU, ``{base_instance_id}-{gpu}`` at ``base_port + gpu``; none where there is none."""
        return [
            _instance(
                f"{base_instance_id}-{gpu.index}",
                base_instance_id,
                gpu,
                host,
                base_port + gpu.index,
                model_name,
                kwargs,
            )
            for gpu in _found()
        ]


def _found() -> list[nvml.Gpu]:
    try:
        return list(nvml.visible(nvml.gpus()))
    except SageLLMError:
        return []


def _instance(
    instance_id: str, base: str, gpu: nvml.Gpu, host: str, port: int, model_name: str, given: dict[str, Any]
) -> ExecutionInstance:
    known: dict[str, Any] = {
        "machine_id": TopologyDetector.get_machine_id(),
        "gpu_bus_id": gpu.bus_id,
        "gpu_device_id": gpu.index,
        "gpu_memory_gb": gpu.total_bytes / GIB,
        "gpu_utilization": gpu.utilization,
        "numa_node": gpu.numa_node,
        "nvlink_peers": [f"{base}-{peer}" for peer in gpu.nvlink_peers],
    }
    return ExecutionInstance(instance_id, host, port, model_name, **{**known, **given})
