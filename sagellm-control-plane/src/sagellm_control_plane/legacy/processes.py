"""Engine servers among this machine's processes, and the ports they listen at, as Linux's ``/proc`` tells it.

Sees those of this user; on a system without ``/proc`` there are none to be seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

PROC = Path("/proc")
_LISTENS = "0A"
_SERVERS = (("-m", "sagellm_control_plane.remote"), ("sagellm", "engine"))
"""Neighbours on a command line that tell an engine server."""


def engine_servers() -> list[dict[str, Any]]:
    """``pid``, ``command``, ``port`` and all ``ports`` of each that listens."""
    listening = dict(_listening())
    found = []
    for folder in PROC.glob("[0-9]*"):
        command = _command(folder)
        if not _serves(command):
            continue
        ports = sorted({listening[inode] for inode in _sockets(folder) if inode in listening})
        if ports:
            found.append({"pid": int(folder.name), "command": command, "port": ports[0], "ports": ports})
    return sorted(found, key=lambda one: one["pid"])


def _serves(command: list[str]) -> bool:
    names = [Path(word).name if "/" in word else word for word in command]
    return any(pair in pairwise(names) for pair in _SERVERS)


def _command(folder: Path) -> list[str]:
    try:
        return [word for word in (folder / "cmdline").read_bytes().decode(errors="replace").split("\0") if word]
    except OSError:
        return []


def _sockets(folder: Path) -> Iterator[str]:
    try:
        descriptors = list((folder / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        try:
            target = str(descriptor.readlink())
        except OSError:
            # Closed while the folder was read.
            continue
        if target.startswith("socket:["):
            yield target[8:-1]


def _listening() -> Iterator[tuple[str, int]]:
    for name in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            if columns[3] == _LISTENS:
                yield columns[9], int(columns[1].rsplit(":", 1)[1], 16)
