"""Blocks in a folder on disk, which any number of engines may share and which outlives them all.

A file a block, named by its hash and that of the one before, in a subfolder a layout. A file is written under another
name and then renamed, so that there is none which is half written under its own; nothing is synchronised, since a
process that is killed loses none of it and a machine that is switched off leaves at most files that do not match their
checksum. Reading a block touches its file: files' times are the order of use that engines share, and who finds the
folder too large removes those used longest ago, whoever's they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import NamedTuple

from sagellm_protocol.blocks import BlockHash

from .base import DISK, Named, Removed
from .layout import VERSION, BlockLayout
from .order import LeafOrder

logger = logging.getLogger(__name__)

MAGIC = b"SAGEKV\n"
SUFFIX = ".kv"
_PART = ".part"
_HOME = re.compile("[0-9a-f]{32}")
"""Names of our subfolders; what else is in the folder is none of ours."""
_ROOT = "root"
_NAME = re.compile(f"([0-9a-f]{{64}})-([0-9a-f]{{64}}|{_ROOT}){re.escape(SUFFIX)}")
_LENGTH = 4
_DIGEST = 32
_STALE_S = 3600.0
"""Age of a half-written file after which whoever wrote it has gone."""
_LEFT = 0.9
"""Share of the limit that is left when files are removed, so that this is seldom done."""
_LOOKS = 16
"""Times that the folder is looked at while as much is written as it may hold: others write, too."""


class _File(NamedTuple):
    name: Named
    used_ns: int
    size: int
    path: Path


class DiskTier:
    """Files of one layout in a folder of bounded size.

    Args:
        folder: Shared with engines of any layout; made where it is not there.
        limit_bytes: Most bytes of all layouts' blocks. Engines that write at once may exceed it by a sixteenth each
            before one of them sees it.
        layout: Of the blocks.

    Raises:
        OSError: The folder cannot be made or written to.
    """

    medium = DISK

    def __init__(self, folder: Path, limit_bytes: int, layout: BlockLayout) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._layout = layout
        self._home = folder / layout.key[:32]
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._header = json.dumps({"version": VERSION, "layout": layout.key, **asdict(layout)}, sort_keys=True).encode()
        self._known: set[BlockHash] = set()
        self._bytes = 0
        self._since_look = 0
        self._names = count()
        self._said: set[str] = set()
        probe = self._part()
        probe.touch(mode=0o600)
        probe.unlink()

    @property
    def nbytes(self) -> int:
        """Bytes of all layouts' files when the folder was last looked at, and of what was written since."""
        return self._bytes

    def __contains__(self, name: Named) -> bool:
        """Whether there is a file of that name; another engine may have written it a moment ago."""
        return name.block in self._known or self._path(name).exists()

    def open(self, removed: Removed) -> None:
        """Learn what is there, and remove the oldest if that is too much."""
        self._look(removed)

    def read(self, name: Named) -> bytes | None:
        """A block's bytes; a file that is not what was written is deleted."""
        block, path = name.block, self._path(name)
        try:
            content = path.read_bytes()
            os.utime(path)
        except FileNotFoundError:
            self._known.discard(block)
            return None
        except OSError as error:
            self._say("read", f"cannot read {path}: {error.strerror}; what it holds is computed again")
            return None
        problem = self._problem(block, content)
        if problem is None:
            return content[len(content) - self._layout.nbytes :]
        self._say("damaged", f"{path} {problem}; it is deleted, as others like it will be, and computed again")
        path.unlink(missing_ok=True)
        self._known.discard(block)
        return None

    def write(self, name: Named, data: bytes, removed: Removed) -> bool:
        """Keep a block."""
        block = name.block
        if name in self:
            self._known.add(block)
            return False
        part = self._part()
        head = MAGIC + len(self._header).to_bytes(_LENGTH, "little") + self._header
        try:
            with part.open("xb") as file:
                file.write(head + self._digest(block, data))
                file.write(data)
            part.replace(self._path(name))
        except OSError as error:
            self._say("write", f"cannot write to {self._home}: {error.strerror}; blocks are not kept there")
            part.unlink(missing_ok=True)
            return False
        size = len(head) + _DIGEST + len(data)
        self._known.add(block)
        self._bytes += size
        self._since_look += size
        if self._bytes > self._limit or self._since_look > self._limit // _LOOKS:
            self._look(removed)
        return block in self._known

    def _look(self, removed: Removed) -> None:
        try:
            total = self._trim()
            ours = {file.name.block for file in self._files(self._home)}
        except OSError as error:
            self._say("look", f"cannot look into {self._folder}: {error.strerror}")
            return
        for block in self._known - ours:
            removed(block)
        self._known, self._bytes, self._since_look = ours, total, 0

    def _trim(self) -> int:
        """Remove what was used longest ago if all together is too large; bytes of what is left."""
        files = {_key(file, file.name.block): file for file in self._files()}
        total = sum(file.size for file in files.values())
        if total <= self._limit:
            return total
        order = LeafOrder()
        for key, file in files.items():
            parent = file.name.parent
            order.use(Named(key, None if parent is None else _key(file, parent)), file.used_ns)
        while total > self._limit * _LEFT and (name := order.give_up()) is not None:
            files[name.block].path.unlink(missing_ok=True)
            total -= files[name.block].size
        return total

    def _path(self, name: Named) -> Path:
        return self._home / f"{name.block.hex()}-{_ROOT if name.parent is None else name.parent.hex()}{SUFFIX}"

    def _part(self) -> Path:
        return self._home / f"{os.getpid()}-{time.monotonic_ns()}-{next(self._names)}{_PART}"

    def _digest(self, block: BlockHash, data: bytes | memoryview) -> bytes:
        digest = hashlib.sha256(self._header)
        digest.update(block)
        digest.update(data)
        return digest.digest()

    def _problem(self, block: BlockHash, content: bytes) -> str | None:
        """What is wrong with a file, if anything is."""
        start = len(MAGIC) + _LENGTH + len(self._header)
        if content[: len(MAGIC)] != MAGIC:
            return "is no block's file"
        if content[len(MAGIC) + _LENGTH : start] != self._header:
            return "is of another model or layout"
        if len(content) != start + _DIGEST + self._layout.nbytes:
            return f"has {len(content)} bytes, not the {start + _DIGEST + self._layout.nbytes} of a block's file"
        if content[start : start + _DIGEST] != self._digest(block, memoryview(content)[start + _DIGEST :]):
            return "does not match its checksum"
        return None

    def _files(self, home: Path | None = None) -> Iterator[_File]:
        """Every block's file, of one layout or of all; what was left half written long ago is removed."""
        homes = [home] if home is not None else [p for p in self._folder.iterdir() if _HOME.fullmatch(p.name)]
        for place in homes:
            for path in place.iterdir():
                with contextlib.suppress(FileNotFoundError):  # removed by another engine a moment ago
                    if match := _NAME.fullmatch(path.name):
                        block, parent = match.groups()
                        name = Named(bytes.fromhex(block), None if parent == _ROOT else bytes.fromhex(parent))
                        status = path.stat()
                        yield _File(name, status.st_mtime_ns, status.st_size, path)
                    elif path.suffix == _PART and time.time() - path.stat().st_mtime > _STALE_S:
                        path.unlink()

    def _say(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("%s (said once)", message)


def _key(file: _File, block: BlockHash) -> bytes:
    """Tells apart blocks of equal hash and other layout."""
    return file.path.parent.name.encode() + block
