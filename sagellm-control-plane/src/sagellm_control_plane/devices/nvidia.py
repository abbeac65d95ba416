"""NVIDIA devices as the driver tells of them, through NVML. Needs the extra ``nvidia``; knows nothing of allocation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sagellm_protocol.devices import DeviceInfo

from .inventory import Device, Found, Link, LinkKind

KIND = "cuda"
_MOST_LINKS = 18
"""NVLinks that any device of today has."""


def find() -> Found:
    """The devices of this host and how they are joined; none, with the reason, where they cannot be asked for."""
    try:
        import pynvml
    except ImportError:
        return Found(reason="NVIDIA: pip install 'isagellm-control-plane[nvidia]' to look for devices")
    try:
        with _open(pynvml):
            handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
            devices = tuple(_device(pynvml, handle, index) for index, handle in enumerate(handles))
            links = tuple(_links(pynvml, handles))
    except pynvml.NVMLError as error:
        return Found(reason=f"NVIDIA: {error}")
    return Found(devices, links, None if devices else "NVIDIA: the driver knows of no device")


@contextmanager
def _open(nvml: Any) -> Iterator[None]:
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _device(nvml: Any, handle: Any, index: int) -> Device:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    name, major_minor = _text(nvml.nvmlDeviceGetName(handle)), nvml.nvmlDeviceGetCudaComputeCapability(handle)
    bus = _text(nvml.nvmlDeviceGetPciInfo(handle).busId).lower()
    try:
        used = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    except nvml.NVMLError:
        # A device cut into instances (MIG) does not tell.
        used = None
    info = DeviceInfo(
        kind=KIND,
        index=index,
        name=name,
        memory_total_bytes=int(memory.total),
        memory_free_bytes=int(memory.free),
        instruction_sets=("sm_{}{}".format(*major_minor),),
    )
    return Device(info, bus_id=bus, utilisation=used)


def _links(nvml: Any, handles: list[Any]) -> Iterator[Link]:
    """Between every two devices: so many NVLinks, or else the nearest that PCIe joins them by."""
    by_bus = {_text(nvml.nvmlDeviceGetPciInfo(handle).busId).lower(): i for i, handle in enumerate(handles)}
    nvlinks: dict[tuple[int, int], int] = {}
    switched: dict[int, int] = {}
    for index, handle in enumerate(handles):
        for link in range(_MOST_LINKS):
            try:
                if not nvml.nvmlDeviceGetNvLinkState(handle, link):
                    continue
                remote = _text(nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link).busId).lower()
            except nvml.NVMLError:
                # No such link on this device.
                break
            if remote in by_bus:
                nvlinks[index, by_bus[remote]] = nvlinks.get((index, by_bus[remote]), 0) + 1
            else:
                switched[index] = switched.get(index, 0) + 1
    near = {nvml.NVML_TOPOLOGY_INTERNAL: LinkKind.SWITCH, nvml.NVML_TOPOLOGY_SINGLE: LinkKind.SWITCH}
    near |= {nvml.NVML_TOPOLOGY_MULTIPLE: LinkKind.SWITCH, nvml.NVML_TOPOLOGY_HOSTBRIDGE: LinkKind.HOST}
    near |= {nvml.NVML_TOPOLOGY_NODE: LinkKind.HOST}
    for a in range(len(handles)):
        for b in range(a + 1, len(handles)):
            # Links that end at a switch reach every device whose links do.
            lanes = nvlinks.get((a, b), 0) or min(switched.get(a, 0), switched.get(b, 0))
            if lanes:
                yield Link(a, b, LinkKind.NVLINK, lanes)
                continue
            level = nvml.nvmlDeviceGetTopologyCommonAncestor(handles[a], handles[b])
            yield Link(a, b, near.get(level, LinkKind.SOCKETS))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
