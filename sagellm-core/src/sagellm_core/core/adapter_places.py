"""Which adapters are in memory: a few places, given to those that steps need, the least recently used giving way.

An adapter that runs, or is being read, keeps its place; one that is idle loses it when another needs one. Knows keys
and folders; nothing of weights, tokens or schedules.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from enum import Enum

from sagellm_core.adapters.base import AdapterRef, Adapters
from sagellm_protocol.errors import SageLLMError

logger = logging.getLogger(__name__)


class Place(Enum):
    """What an adapter that is asked for has."""

    READY = "ready"
    """It is in memory."""
    READING = "reading"
    """It has a place, and is on its way there."""
    NONE = "none"
    """Every place is taken by others that run or are being read."""


class AdapterPlaces:
    """The adapters of one core.

    Args:
        adapters: Holds the weights.
        limit: How many may be in memory at once.

    Attributes:
        wake: Called from another thread when :meth:`settle` has something to do.
    """

    def __init__(self, adapters: Adapters, limit: int) -> None:
        self.wake: Callable[[], None] = lambda: None
        self._adapters = adapters
        self._limit = limit
        self._held: OrderedDict[str, Place] = OrderedDict()  # least recently used first
        self._running: Counter[str] = Counter()
        self._live: Counter[str] = Counter()
        self._unwanted: set[str] = set()
        self._read: deque[tuple[str, Future[None]]] = deque()
        self._reading: dict[str, Future[None]] = {}

    @property
    def in_memory(self) -> int:
        """Adapters that are in memory, or on their way there."""
        return len(self._held)

    @property
    def pending(self) -> bool:
        """Whether :meth:`settle` has something to do."""
        return bool(self._read)

    def enter(self, adapter: AdapterRef) -> None:
        """A sequence that uses an adapter has come."""
        self._live[adapter.key] += 1

    def end(self, adapter: AdapterRef) -> None:
        """A sequence that used an adapter is over."""
        self._take_off(self._live, adapter.key)
        self._tidy(adapter.key)

    def ask(self, adapter: AdapterRef) -> Place:
        """What an adapter has now; where there is a place for it, it is read from this call on."""
        key = adapter.key
        if key not in self._held:
            if len(self._held) >= self._limit and not self._make_room():
                return Place.NONE
            self._held[key] = Place.READING
            self._reading[key] = reading = self._adapters.read(adapter)
            reading.add_done_callback(lambda done: self._note(key, done))
        return self._held[key]

    def take(self, adapter: AdapterRef) -> None:
        """A sequence that uses an adapter begins to run."""
        assert self._held.get(adapter.key) is Place.READY, "an adapter runs that is not in memory"
        self._running[adapter.key] += 1
        self._held.move_to_end(adapter.key)

    def leave(self, adapter: AdapterRef) -> None:
        """It runs no more."""
        self._take_off(self._running, adapter.key)

    def check(self, path: str) -> Future[str]:
        """See, in another thread, whether the adapter in a folder fits; its key."""
        return self._adapters.check(path)

    def welcome(self, adapter: AdapterRef) -> None:
        """An adapter is served from now on; it is read if a place is free."""
        self._unwanted.discard(adapter.key)
        if len(self._held) < self._limit:
            self.ask(adapter)

    def forget(self, key: str) -> None:
        """An adapter is served no more: when the last that uses it is over, its memory is given back."""
        self._unwanted.add(key)
        self._tidy(key)

    def vacate(self) -> None:
        """Hold nothing any more, as nobody runs: the model's weights go, or others come.

        What is being read is waited for, and dropped.
        """
        assert not self._running, "adapters run"
        for key, reading in self._reading.items():
            reading.exception()
            self._held[key] = Place.READY
        self._reading.clear()
        for key in list(self._held):
            self._drop(key)
            self._tidy(key)

    def settle(self) -> dict[str, BaseException]:
        """Take in what has been read; why each that could not be, could not."""
        failed: dict[str, BaseException] = {}
        while self._read:
            key, done = self._read.popleft()
            if self._reading.get(key) is not done:  # read for weights that have gone
                continue
            del self._reading[key]
            problem = done.exception()
            if problem is None:
                self._held[key] = Place.READY
            else:
                del self._held[key]
                failed[key] = problem
                if not isinstance(problem, SageLLMError):
                    logger.error("an adapter could not be read", exc_info=problem)
            self._tidy(key)
        return failed

    def stop(self) -> None:
        """Read nothing more."""
        self._adapters.stop()

    def check_integrity(self, running: Iterable[AdapterRef], live: Iterable[AdapterRef]) -> None:
        """Raise AssertionError unless what is held and counted agrees with who runs and lives."""
        assert len(self._held) <= self._limit, "more adapters are in memory than may be"
        assert self._running == Counter(adapter.key for adapter in running), "adapters that run are miscounted"
        assert self._live == Counter(adapter.key for adapter in live), "adapters in use are miscounted"
        assert all(self._held.get(key) is Place.READY for key in self._running), "an adapter runs that is not in memory"
        kept = [key for key in self._unwanted if not self._live[key]]
        assert all(self._held.get(key) is Place.READING for key in kept), "an adapter outlived its use"

    def _make_room(self) -> bool:
        for key, place in self._held.items():
            if place is Place.READY and not self._running[key]:
                self._drop(key)
                return True
        return False

    def _drop(self, key: str) -> None:
        del self._held[key]
        self._adapters.drop(key)

    def _tidy(self, key: str) -> None:
        """Give back what is neither served nor used any more."""
        if key not in self._unwanted or self._live[key] or self._held.get(key) is Place.READING:
            return
        self._unwanted.discard(key)
        if key in self._held:
            self._drop(key)

    def _note(self, key: str, done: Future[None]) -> None:
        # In whichever thread it happens.
        self._read.append((key, done))
        self.wake()

    @staticmethod
    def _take_off(counter: Counter[str], key: str) -> None:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]
