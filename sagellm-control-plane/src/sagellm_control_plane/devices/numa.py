"""Which memory is near to which processors and devices: NUMA nodes as Linux tells of them under ``/sys``.

Elsewhere, and where the kernel does not tell, there are none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")


@dataclass(frozen=True)
class NumaNode:
    """One node."""

    index: int
    cpus: tuple[int, ...]
    memory_bytes: int | None
    distances: tuple[int, ...] = ()
    """To every node, itself included; 10 is near."""


def nodes(sys: Path = SYS) -> tuple[NumaNode, ...]:
    """All nodes of this host, by index."""
    found = []
    for folder in (sys / "devices/system/node").glob("node[0-9]*"):
        index = int(folder.name[4:])
        cpus = parse_list(_read(folder / "cpulist") or "")
        distances = tuple(int(one) for one in (_read(folder / "distance") or "").split())
        found.append(NumaNode(index, cpus, _memory(_read(folder / "meminfo")), distances))
    return tuple(sorted(found, key=lambda node: node.index))


def node_of(bus_id: str, sys: Path = SYS) -> int | None:
    """The node that a device on PCIe is near to.

    Args:
        bus_id: As NVML writes it (eight digits of domain) or as Linux does (four).
        sys: Where the kernel tells.
    """
    domain, _, rest = bus_id.lower().partition(":")
    text = _read(sys / "bus/pci/devices" / f"{domain[-4:]}:{rest}" / "numa_node")
    # The kernel says -1 for a device that is near to all.
    return int(text) if text is not None and int(text) >= 0 else None


def parse_list(text: str) -> tuple[int, ...]:
    """The numbers of a list as the kernel writes it: ``0-3,8``."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(numbers)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _memory(text: str | None) -> int | None:
    for line in (text or "").splitlines():
        if "MemTotal:" in line:
            return int(line.split("MemTotal:")[1].split()[0]) * 1024
    return None
