"""What this process may use of its host: processors, instruction sets, memory, as the kernel and cgroups limit them.

Reads ``/proc`` and ``/sys`` where they exist and falls back to the standard library. Imports no torch.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from sagellm_protocol.backend import MemoryInfo
from sagellm_protocol.devices import DeviceInfo

_KERNEL_SETS: tuple[str, ...] = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
)
_KERNEL_SETS += ("avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2")
_UNLIMITED = 1 << 60
"""Version 1 of cgroups writes a huge number for no limit."""


def cpu_device(root: Path = Path("/")) -> DeviceInfo:
    """The processor as a device.

    Args:
        root: Where ``proc`` and ``sys`` are found.
    """
    model, flags = _cpuinfo(root)
    memory = memory_info(root)
    return DeviceInfo(
        kind="cpu",
        name=model,
        memory_total_bytes=memory.total_bytes,
        memory_free_bytes=memory.free_bytes,
        cores=usable_cores(root),
        instruction_sets=tuple(name for name in _KERNEL_SETS if name in flags),
    )


def usable_cores(root: Path = Path("/")) -> int:
    """Processors this process may really use: its affinity, cut down by cgroups' quotas rounded up, at least one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [affinity, *(math.ceil(quota) for quota in _quotas(root))]
    return max(1, min(shares))


def compute_threads(root: Path = Path("/")) -> int:
    """Threads to compute with: the usable processors, less one for what serves where there are more than two."""
    cores = usable_cores(root)
    return cores - 1 if cores > 2 else cores


def memory_info(root: Path = Path("/")) -> MemoryInfo:
    """Bytes of memory this process may use: the host's, cut down by every cgroup above it.

    File pages that the kernel can drop count as free.
    """
    total, free = _host_memory(root)
    for limit, used in _memory_limits(root):
        total = min(total, limit)
        free = min(free, max(0, limit - used))
    return MemoryInfo(total_bytes=total, free_bytes=free)


def _cpuinfo(root: Path) -> tuple[str, frozenset[str]]:
    model, flags = "", frozenset[str]()
    for line in _lines(root / "proc/cpuinfo"):
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name" and not model:
            model = value
        elif key in ("flags", "Features") and not flags:
            flags = frozenset(value.split())
    return model or platform.processor() or platform.machine(), flags


def _host_memory(root: Path) -> tuple[int, int]:
    sizes = {}
    for line in _lines(root / "proc/meminfo"):
        key, _, value = line.partition(":")
        sizes[key] = int(value.split()[0]) * 1024
    if "MemTotal" in sizes:
        return sizes["MemTotal"], sizes.get("MemAvailable", sizes.get("MemFree", 0))
    return _portable_memory()


def _portable_memory() -> tuple[int, int]:
    try:
        import psutil
    except ImportError:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
        # Without psutil, systems other than Linux do not say what is free: half is a cautious guess.
        return total, total // 2
    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def _cgroups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Version and folder of each cgroup this process is in for ``controller``, innermost first."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.strip().split(":", 2)
        if number == "0" and not controllers:
            for base in (root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"):
                yield from ((2, folder) for folder in _ancestry(base, path))
        elif controller in controllers.split(","):
            for base in (root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller):
                yield from ((1, folder) for folder in _ancestry(base, path))


def _ancestry(base: Path, path: str) -> Iterator[Path]:
    # Inside a container the path may be the host's; its own limits then lie at the mount's root.
    inner = base / path.lstrip("/")
    while inner != base:
        if inner.is_dir():
            yield inner
        inner = inner.parent
    if base.is_dir():
        yield base


def _quotas(root: Path) -> Iterator[float]:
    for version, folder in _cgroups(root, "cpu"):
        if version == 2:
            words = _text(folder / "cpu.max").split()
        else:
            words = [_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()]
        if len(words) == 2 and all(word.isdigit() for word in words):
            yield int(words[0]) / int(words[1])


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each cgroup that has a limit."""
    for version, folder in _cgroups(root, "memory"):
        names = ("memory.max", "memory.current", "inactive_file")
        if version == 1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit, used = _text(folder / names[0]).strip(), _text(folder / names[1]).strip()
        if not (limit.isdigit() and used.isdigit()) or int(limit) >= _UNLIMITED:
            continue
        droppable = 0
        for line in _lines(folder / "memory.stat"):
            key, _, value = line.partition(" ")
            if key == names[2]:
                droppable = int(value)
        yield int(limit), max(0, int(used) - droppable)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()
