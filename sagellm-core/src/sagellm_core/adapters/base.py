"""What the core asks of whoever holds adapters' weights, and how an adapter is named among them.

Knows nothing of files or tensors.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

import msgspec


class AdapterRef(msgspec.Struct, frozen=True, array_like=True):
    """An adapter, as requests carry it through the core.

    Attributes:
        key: Digest of what is in it; adapters of equal keys are one.
        path: The folder it is read from whenever it is not in memory.
    """

    key: str
    path: str


class Adapters(Protocol):
    """Weights of adapters. Its futures' errors are ``SageLLMError`` where the adapter is at fault."""

    def check(self, path: str) -> Future[str]:
        """See, in another thread, whether the adapter in a folder fits the model; its key."""
        ...

    def read(self, adapter: AdapterRef) -> Future[None]:
        """Bring an adapter's weights to memory, in another thread; once done, steps may use it."""
        ...

    def drop(self, key: str) -> None:
        """Give its memory back."""
        ...

    def stop(self) -> None:
        """Read nothing more."""
        ...
