"""What an encoder is to the runner: it reads whole inputs and keeps nothing.

Knows nothing of pooling, slots or schedules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from sagellm_core.layers.linear import Sharding, Tensor
from sagellm_core.loading.base import Checkpoint
from sagellm_protocol.backend import AttentionPlan, Backend
from sagellm_protocol.devices import DType


@runtime_checkable
class Encoder(Protocol):
    """An encoder that is loaded on a backend."""

    @property
    def weight_bytes(self) -> int:
        """Bytes its weights occupy."""
        ...

    @property
    def sharding(self) -> Mapping[str, Sharding]:
        """How ranks divide each of its weights, by name."""
        ...

    @property
    def scores(self) -> bool:
        """Whether it has a head that makes one number of each input."""
        ...

    def encode(self, ids: Tensor, positions: Tensor, types: Tensor, plan: AttentionPlan) -> Tensor:
        """Read whole inputs.

        Args:
            ids: Token ids of all inputs one after another, ``[T]``.
            positions: Their places within their inputs, from 0, ``[T]``.
            types: Which of an input's texts each belongs to, 0 or 1, ``[T]``.
            plan: Whose tokens are whose.

        Returns:
            Hidden states of the last layer, ``[T, E]``.
        """
        ...

    def score(self, hidden: Tensor) -> Tensor:
        """The head's number for each input, before any activation: its first token's ``[R, E]`` to ``[R, 1]``."""
        ...


class EncoderClass(Protocol):
    """What loads an encoder."""

    def __call__(self, checkpoint: Checkpoint, ops: Backend[Tensor], dtype: DType, quantization: str | None) -> Encoder:
        """Load ``checkpoint`` on ``ops``, computing in ``dtype``."""
        ...
