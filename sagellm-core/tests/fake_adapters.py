"""Adapters without weights: read when a test says so, and told apart by their keys."""

from __future__ import annotations

from concurrent.futures import Future

from fake_executor import FakeExecutor
from sagellm_core.adapters.base import AdapterRef
from sagellm_protocol import ErrorCode, SageLLMError


def ref(key: str) -> AdapterRef:
    return AdapterRef(key, f"/adapters/{key}")


class FakeAdapters:
    """Those of one fake executor.

    Args:
        executor: Told which are in memory.

    Attributes:
        missing: Keys that cannot be read.
        reads: Keys in the order they were asked for.
        most: Most that were in memory or being read at once.
    """

    def __init__(self, executor: FakeExecutor) -> None:
        self._executor = executor
        self._reading: list[tuple[str, Future[None]]] = []
        self.missing: set[str] = set()
        self.reads: list[str] = []
        self.most = 0

    @property
    def in_memory(self) -> set[str]:
        return self._executor.in_memory

    def check(self, path: str) -> Future[str]:
        raise NotImplementedError

    def read(self, adapter: AdapterRef) -> Future[None]:
        future: Future[None] = Future()
        self._reading.append((adapter.key, future))
        self.reads.append(adapter.key)
        self.most = max(self.most, len(self._reading) + len(self.in_memory))
        return future

    def finish(self, count: int | None = None) -> None:
        """Let the first ones that are being read be there."""
        done, self._reading = self._reading[:count], self._reading[len(self._reading[:count]) :]
        for key, future in done:
            if key in self.missing:
                future.set_exception(SageLLMError(ErrorCode.MODEL_NOT_FOUND, f"/adapters/{key}: no such folder"))
            else:
                self.in_memory.add(key)
                future.set_result(None)

    def drop(self, key: str) -> None:
        self.in_memory.remove(key)

    def stop(self) -> None:
        pass
