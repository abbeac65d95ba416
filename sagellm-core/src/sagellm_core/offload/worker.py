"""The thread that reads and writes tiers, so that no step waits for a disk. Reading goes before writing.

Knows bytes and hashes; nothing of pools or sequences.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from .base import Named
from .shelf import Shelf

logger = logging.getLogger(__name__)

IN_HAND_BYTES = 64 << 20
"""Most bytes that are on their way in each direction."""
STOP_S = 10.0
"""Longest that writing what is left may take when the core ends."""


class Arrived(NamedTuple):
    """A block that was read."""

    name: Named
    data: bytes
    medium: str
    seconds: float


@dataclass(eq=False)
class Load:
    """Blocks wanted in order.

    Attributes:
        wanted: What is still to be read.
        arrived: What was read, for the core to take.
        read: Nothing more comes: all was read, or one was not there.
        given_up: Nobody waits for it any more.
    """

    wanted: deque[Named]
    arrived: deque[Arrived] = field(default_factory=deque)
    read: bool = False
    given_up: bool = False


class Worker:
    """One thread over a shelf.

    Args:
        shelf: Its tiers.
        wake: Called whenever something has arrived, and when there is room again for more to write.
    """

    def __init__(self, shelf: Shelf, wake: Callable[[], None]) -> None:
        self._shelf = shelf
        self._wake = wake
        self._changed = threading.Condition()
        self._loads: deque[Load] = deque()
        self._writes: deque[tuple[Named, bytes]] = deque()
        self._writing = 0  # bytes
        self._reading = 0  # bytes read that were not taken
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="sagellm-offload", daemon=True)
        self._thread.start()

    @property
    def accepts(self) -> bool:
        """Whether there is room for another block to write."""
        return self._writing < IN_HAND_BYTES

    def load(self, load: Load) -> None:
        """Read blocks."""
        with self._changed:
            self._loads.append(load)
            self._changed.notify()

    def take(self, load: Load) -> Arrived | None:
        """The next block that has arrived, if one has."""
        with self._changed:
            if not load.arrived:
                return None
            arrived = load.arrived.popleft()
            self._reading -= len(arrived.data)
            self._changed.notify()
            return arrived

    def give_up(self, load: Load) -> None:
        """Read no more of it, and drop what has arrived."""
        with self._changed:
            load.given_up = True
            self._reading -= sum(len(arrived.data) for arrived in load.arrived)
            load.arrived.clear()
            self._changed.notify()

    def write(self, name: Named, data: bytes) -> None:
        """Keep a block."""
        with self._changed:
            self._writing += len(data)
            self._writes.append((name, data))
            self._changed.notify()

    def settle(self, limit_s: float) -> None:
        """Return once all that was given is written, or after ``limit_s``."""
        with self._changed:
            self._changed.wait_for(lambda: not self._writing, limit_s)

    def stop(self) -> None:
        """Write what is left, read nothing more, and end."""
        with self._changed:
            self._stopping = True
            self._loads.clear()
            self._changed.notify()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        self._shelf.open()
        while True:
            with self._changed:
                while not (self._may_read() or self._writes or self._stopping):
                    self._changed.wait()
                load = self._loads[0] if self._may_read() else None
                write = self._writes.popleft() if load is None and self._writes else None
            if load is not None:
                self._read_one(load)
            elif write is not None:
                self._write_one(*write)
            else:
                return

    def _may_read(self) -> bool:
        return bool(self._loads) and (self._reading < IN_HAND_BYTES or self._loads[0].given_up)

    def _read_one(self, load: Load) -> None:
        arrived = self._read(load.wanted.popleft()) if load.wanted and not load.given_up else None
        with self._changed:
            if arrived is not None and not load.given_up:
                self._reading += len(arrived.data)
                load.arrived.append(arrived)
            load.read = arrived is None or not load.wanted
            if load.read and self._loads and self._loads[0] is load:
                self._loads.popleft()
        self._wake()

    def _read(self, name: Named) -> Arrived | None:
        began = time.perf_counter()
        try:
            found = self._shelf.read(name)
        except Exception:
            logger.exception("a block could not be read; it is computed again")
            return None
        return None if found is None else Arrived(name, *found, time.perf_counter() - began)

    def _write_one(self, name: Named, data: bytes) -> None:
        try:
            self._shelf.write(name, data)
        except Exception:
            logger.exception("a block could not be kept")
        with self._changed:
            full = not self.accepts
            self._writing -= len(data)
            self._changed.notify_all()
        if full or not self._writing:
            self._wake()  # there is room again, or something to tell of
