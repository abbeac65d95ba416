"""Devices of a host and how they are joined: plain values, and where they are learned from.

Kinds other than NVIDIA's are those that backends report (:class:`sagellm_protocol.devices.BackendCapabilities`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from sagellm_protocol.devices import BackendCapabilities, DeviceInfo


class LinkKind(IntEnum):
    """What joins two devices, slowest first."""

    SOCKETS = 0
    """PCIe and the connection between processors."""
    HOST = 1
    """PCIe through one processor."""
    SWITCH = 2
    """PCIe through a switch."""
    NVLINK = 3


@dataclass(frozen=True)
class Link:
    """Between two devices, by index, the lower first."""

    a: int
    b: int
    kind: LinkKind
    lanes: int = 1
    """NVLinks between them."""


@dataclass(frozen=True)
class Device:
    """A device, and what only its host's plane wants to know."""

    info: DeviceInfo
    bus_id: str | None = None
    """Its address on PCIe."""
    utilisation: float | None = None
    """Share of the last moment in which it computed."""

    @property
    def key(self) -> tuple[str, int]:
        """Kind and index: its name on this host."""
        return self.info.kind, self.info.index


@dataclass(frozen=True)
class Found:
    """What a search brought."""

    devices: tuple[Device, ...] = ()
    links: tuple[Link, ...] = ()
    reason: str | None = None
    """Why there are none."""


def of_backends(reports: Iterable[BackendCapabilities]) -> Found:
    """Devices that backends can use on this host, as their engines or discovery report them."""
    devices: dict[tuple[str, int], Device] = {}
    reasons = []
    for report in reports:
        if report.available:
            for info in report.devices:
                devices.setdefault((info.kind, info.index), Device(info))
        else:
            reasons.append(f"{report.backend}: {report.reason or 'not available'}")
    found = tuple(devices.values())
    return Found(found, (), None if found else "; ".join(reasons) or "no backend is installed")
