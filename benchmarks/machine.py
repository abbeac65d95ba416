"""What a benchmark ran on, for people."""

from __future__ import annotations

import os
import re
from pathlib import Path

_FIELDS = {"model name": "model name", "family": "cpu family", "model": "model"}


def describe_machine() -> str:
    """Processor, cores, and how busy they were just now."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:
        info = ""
    found = {name: re.search(rf"^{key}\s*: (.+)$", info, re.MULTILINE) for name, key in _FIELDS.items()}
    name, family, model = (match.group(1) if match else "?" for match in found.values())
    cores = len(os.sched_getaffinity(0))
    return f"{name} (family {family}, model {model}), {cores} cores, load {os.getloadavg()[0]:.1f} before"
