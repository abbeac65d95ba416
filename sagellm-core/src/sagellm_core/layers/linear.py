"""Projections and embedding tables: packed weights with the one operation each is for.

Knows nothing of where a weight came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from sagellm_protocol.backend import Backend, Weight
from sagellm_protocol.devices import DType

from .adapted import Adaptable

Tensor = Any
"""Whatever the backend makes."""


class Sharding(str, Enum):
    """How a weight is divided among the ranks of a tensor-parallel group."""

    COLUMN = "column"
    """Each rank holds some of the output features; nothing is summed."""
    ROW = "row"
    """Each rank holds some of the input features; outputs are summed over ranks."""
    VOCAB = "vocab"
    """Each rank holds some rows of the table."""
    REPLICATED = "replicated"
    """Each rank holds all of it."""


@dataclass(frozen=True)
class Linear:
    """A projection ``x @ weight.T + bias`` of ``[T, E]`` to ``[T, O]``.

    Attributes:
        ops: The backend.
        weight: Packed, ``(O, E)``; several matrices may be stacked in it.
        sharding: How ranks divide it.
        adaptable: What adapters add to it, if they may.
    """

    ops: Backend[Tensor]
    weight: Weight
    sharding: Sharding
    adaptable: Adaptable | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Project ``[T, E]``, the rows of adapters through those."""
        adaptable = self.adaptable
        if adaptable is None or not adaptable.adapting.runs:
            return self.ops.linear(x, self.weight)
        return self.ops.linear(x, self.weight, adaptable.adapted())


@dataclass(frozen=True)
class Embedding:
    """A table of embeddings, ``[T]`` ids to ``[T, E]``.

    Attributes:
        ops: The backend.
        weight: Packed, ``(V, E)``.
        dtype: Type of the rows it gives.
        sharding: How ranks divide it.
    """

    ops: Backend[Tensor]
    weight: Weight
    dtype: DType
    sharding: Sharding = Sharding.VOCAB

    def __call__(self, ids: Tensor) -> Tensor:
        """Rows of ``ids`` ``[T]``: ``[T, E]``."""
        return self.ops.embedding(ids, self.weight, self.dtype)
