"""What of the devices' memory is promised to whom. Promises are whole: granted on all devices asked for, or on none.

Safe to use from several threads; knows nothing of engines but their names.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sagellm_protocol import ErrorCode, SageLLMError

from .inventory import Device, Link

Key = tuple[str, int]
"""Kind and index of a device."""


@dataclass(frozen=True)
class Grant:
    """Memory that an owner may use, on each of some devices."""

    owner: str
    devices: tuple[Key, ...]
    bytes_each: int


class DeviceLedger:
    """Promises over the devices of one host.

    Args:
        devices: What there is; a device that does not tell its memory can be granted whole only, to one owner.
        links: How they are joined: devices that are close are granted together where there is a choice.
    """

    def __init__(self, devices: Iterable[Device] = (), links: Iterable[Link] = ()) -> None:
        self._lock = threading.Lock()
        self._grants: dict[str, Grant] = {}
        self._others: dict[Key, int] = {}
        """Bytes that others used on a device while nothing on it was promised; later nobody can tell whose they are."""
        self._links: dict[tuple[int, int], Link] = {}
        self._devices: dict[Key, Device] = {}
        self.refresh(devices, links)

    def refresh(self, devices: Iterable[Device], links: Iterable[Link] = ()) -> None:
        """Take in what devices tell now. Promises stay, also on a device that is gone."""
        with self._lock:
            self._devices = {device.key: device for device in devices}
            for key, device in self._devices.items():
                if not self._promised(key):
                    self._others[key] = _used(device)
            self._links = {(link.a, link.b): link for link in links}

    def allocate(self, owner: str, bytes_each: int, count: int = 1, *, kind: str | None = None) -> Grant:
        """Promise memory on so many devices of one kind.

        Close devices first, then those on which the least is left after it: large holes are kept for large models.

        Raises:
            SageLLMError: ``CONFLICT`` when the owner has a promise already; ``UNAVAILABLE`` when there is too little,
                naming what each device has left; ``INVALID_REQUEST`` for sizes under 1.
        """
        if bytes_each < 1 or count < 1:
            raise SageLLMError(
                ErrorCode.INVALID_REQUEST, f"bytes and count must be 1 or more (got {bytes_each}, {count})"
            )
        with self._lock:
            if owner in self._grants:
                raise SageLLMError(ErrorCode.CONFLICT, f"{owner!r} holds devices already; release them first")
            free = {key: self._free(key) for key, device in self._devices.items() if kind in (None, device.info.kind)}
            fitting = [key for key, left in free.items() if left >= bytes_each]
            chosen = self._together(fitting, free, count)
            if chosen is None:
                told = ", ".join(f"{k[0]}:{k[1]} {left / 2**30:.1f}" for k, left in sorted(free.items())) or "no device"
                raise SageLLMError(
                    ErrorCode.UNAVAILABLE,
                    f"{count} devices with {bytes_each / 2**30:.1f} GiB each are wanted; free GiB: {told}",
                )
            grant = self._grants[owner] = Grant(owner, chosen, bytes_each)
            return grant

    def release(self, owner: str) -> Grant | None:
        """Take a promise back, once: when an engine stopped, or died. ``None`` where there is none."""
        with self._lock:
            return self._grants.pop(owner, None)

    def keep(self, owners: Collection[str]) -> list[Grant]:
        """Take back what is promised to anybody else: those have gone without a word."""
        with self._lock:
            lost = [grant for owner, grant in self._grants.items() if owner not in owners]
            for grant in lost:
                del self._grants[grant.owner]
            return lost

    def grants(self) -> Mapping[str, Grant]:
        """All promises by owner."""
        with self._lock:
            return dict(self._grants)

    def promised(self, key: Key) -> int:
        """Bytes promised on a device."""
        with self._lock:
            return self._promised(key)

    def free(self, key: Key) -> int:
        """Bytes that may still be promised on a device."""
        with self._lock:
            return self._free(key)

    def _promised(self, key: Key) -> int:
        return sum(grant.bytes_each for grant in self._grants.values() if key in grant.devices)

    def _free(self, key: Key) -> int:
        """What neither promises, some of them not used yet, nor others take."""
        device, promised = self._devices.get(key), self._promised(key)
        if device is None:
            return 0
        total = device.info.memory_total_bytes
        if total is None:
            return 0 if promised else 2**62
        return max(0, total - max(promised + self._others[key], _used(device)))

    def _together(self, fitting: list[Key], free: Mapping[Key, int], count: int) -> tuple[Key, ...] | None:
        """So many of one kind: sets are grown from each device by the closest to those chosen; the closest is taken."""
        best: tuple[tuple[int, int, tuple[Key, ...]], tuple[Key, ...]] | None = None
        for first in sorted(fitting):
            chosen, rest = [first], [key for key in sorted(fitting) if key[0] == first[0] and key != first]
            while len(chosen) < count and rest:
                closest = min(rest, key=lambda key: (-sum(self._near(key, one) for one in chosen), free[key]))
                chosen.append(closest)
                rest.remove(closest)
            if len(chosen) == count:
                near = sum(self._near(a, b) for a in chosen for b in chosen if a < b)
                order = (-near, sum(free[key] for key in chosen), tuple(sorted(chosen)))
                if best is None or order < best[0]:
                    best = (order, tuple(sorted(chosen)))
        return best[1] if best is not None else None

    def _near(self, one: Key, other: Key) -> int:
        link = self._links.get((min(one[1], other[1]), max(one[1], other[1])))
        return 0 if link is None or one[0] != other[0] else 100 * int(link.kind) + min(link.lanes, 99)


def _used(device: Device) -> int:
    total, free = device.info.memory_total_bytes, device.info.memory_free_bytes
    return 0 if total is None or free is None else total - free
