"""Whether a file on disk is the file the catalogue means, by its SHA-256.

Hashing 100 MB at every start would cost more than reading it, so a file that was found right is remembered by what the
file system says of it (size, times, inode); whatever touches the file makes it be hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .catalogue import CatalogueFile

_STAMPS = ".verified.json"
_CHUNK = 1 << 20


def sha256_of(path: Path, advanced: Callable[[int], None] = lambda _: None) -> str:
    """Digest of a file's contents, lowercase hexadecimal.

    Args:
        path: The file.
        advanced: Told the number of bytes after each piece.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            advanced(count)
    return digest.hexdigest()


def intact(folder: Path, files: Sequence[CatalogueFile]) -> bool:
    """Whether ``folder`` holds every one of ``files``, unaltered."""
    stamps = _read_stamps(folder)
    fresh: dict[str, Any] = {}
    for file in files:
        path = folder / file.path
        try:
            stamp = _stamp(path, file)
            if stamps.get(file.path) != stamp and not _is(file, path):
                return False
        except OSError:
            return False
        fresh[file.path] = stamp
    if fresh != stamps:
        # A cache that cannot be written to (an image layer, a shared mount) is hashed each time instead.
        with contextlib.suppress(OSError):
            _write_stamps(folder, fresh)
    return True


def _is(file: CatalogueFile, path: Path) -> bool:
    return path.stat().st_size == file.size and sha256_of(path) == file.sha256


def _stamp(path: Path, file: CatalogueFile) -> list[Any]:
    found = path.stat()
    return [file.sha256, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _read_stamps(folder: Path) -> dict[str, Any]:
    try:
        stamps = json.loads((folder / _STAMPS).read_bytes())
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _write_stamps(folder: Path, stamps: dict[str, Any]) -> None:
    draft = folder / f"{_STAMPS}.{os.getpid()}"
    draft.write_text(json.dumps(stamps))
    draft.replace(folder / _STAMPS)
