"""The highest resident memory of this process."""

from __future__ import annotations

import re
import time
from pathlib import Path

MAX_AGE_S = 0.5

_STATUS = Path("/proc/self/status")
_HIGH_WATER = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def peak_memory_mb() -> float | None:
    """MiB at the highest so far; ``None`` where the system does not say (only Linux does).

    It is the kernel's high-water mark of this address space. ``getrusage`` would not do: a child inherits its parent's.
    """
    if not _STATUS.exists():
        return None
    found = _HIGH_WATER.search(_STATUS.read_text())
    return int(found.group(1)) / 1024 if found else None


class PeakMemory:
    """:func:`peak_memory_mb`, asked of the system at most every ``MAX_AGE_S``: many sequences may end in one step."""

    def __init__(self) -> None:
        self._read_at = float("-inf")
        self._mb: float | None = None

    def read_mb(self) -> float | None:
        """MiB, at most ``MAX_AGE_S`` old."""
        now = time.monotonic()
        if now - self._read_at > MAX_AGE_S:
            self._read_at, self._mb = now, peak_memory_mb()
        return self._mb
