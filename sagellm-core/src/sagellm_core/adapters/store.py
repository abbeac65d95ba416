"""Adapters in memory: checked and read in a thread, one after another, and dropped when told to.

Knows nothing of who uses them, nor when one has to give way.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sagellm_core.layers.adapted import Adapting
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .base import AdapterRef
from .fit import fit, make
from .folder import open_adapter

_BYTES = {DType.FLOAT32: 4, DType.BFLOAT16: 2, DType.FLOAT16: 2}


class AdapterStore:
    """Adapters of one model; implements :class:`.base.Adapters`.

    Args:
        adapting: Gives the projections of the model that is loaded now: weights may be given up, and others taken.
        ops: The backend it is loaded on.
        dtype: Type that is computed in.
        largest_rank: Of an adapter.
    """

    def __init__(self, adapting: Callable[[], Adapting], ops: Backend[Any], dtype: DType, largest_rank: int) -> None:
        self._adapting = adapting
        self._ops = ops
        self._dtype = dtype
        self._largest_rank = largest_rank
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sagellm-adapters")

    @property
    def largest_bytes(self) -> int:
        """Bytes that one adapter may take."""
        projections = self._adapting().projections
        inputs = sum(len(projection.rows) * projection.columns for projection in projections)
        outputs = sum(sum(projection.rows) for projection in projections)
        return (inputs + outputs) * self._largest_rank * _BYTES.get(self._dtype, 4)

    def check(self, path: str) -> Future[str]:
        """See whether the adapter in a folder fits; its key."""
        return self._pool.submit(self._check, path)

    def read(self, adapter: AdapterRef) -> Future[None]:
        """Bring an adapter to memory."""
        return self._pool.submit(self._read, adapter)

    def drop(self, key: str) -> None:
        """Give an adapter's memory back."""
        for projection in self._adapting().projections:
            projection.low_rank.pop(key, None)

    def stop(self) -> None:
        """Read nothing more; waits for what is being read."""
        self._pool.shutdown(cancel_futures=True)

    def _check(self, path: str) -> str:
        adapter = open_adapter(path)
        fit(adapter, self._adapting(), self._largest_rank)
        return adapter.key

    def _read(self, wanted: AdapterRef) -> None:
        adapter = open_adapter(wanted.path)
        if adapter.key != wanted.key:
            raise SageLLMError(
                ErrorCode.CONFLICT,
                f"the adapter in {wanted.path} is not what it was when it was loaded; load it anew to use what it is",
                "adapter",
            )
        fitted = fit(adapter, self._adapting(), self._largest_rank)
        made = {projection: make(parts, projection, self._ops, self._dtype) for projection, parts in fitted.items()}
        # Nobody asks for the key before this is done.
        for projection, low_rank in made.items():
            projection.low_rank[wanted.key] = low_rank
