"""From named raw tensors to the packed weights of layers, with every name accounted for.

Knows nothing of file formats, nor of what a layer computes.
"""

from __future__ import annotations

from collections.abc import Sequence

from sagellm_core.loading.base import Checkpoint
from sagellm_core.loading.errors import corrupt
from sagellm_protocol.backend import Backend, RawWeight, WeightUse
from sagellm_protocol.devices import DType

from .linear import Embedding, Linear, RMSNorm, Sharding, Tensor

_OF_TABLES = "int8"
"""What embeddings and the output head are quantised to when projections are quantised at all."""


class Packer:
    """Packs a checkpoint's weights for one backend, and remembers which it used and what they take.

    Args:
        checkpoint: Where weights come from.
        ops: The backend that packs.
        dtype: Type that is computed in.
        quantization: A format of the backend's to quantise projections to. Tables of embeddings and the output head,
            where every token is decided, get 8 bits then, or none where the backend does not offer that.

    Attributes:
        nbytes: Bytes of all weights packed so far.
        sharding: How ranks divide each weight used so far, by name.
    """

    def __init__(self, checkpoint: Checkpoint, ops: Backend[Tensor], dtype: DType, quantization: str | None) -> None:
        self.ops = ops
        self.dtype = dtype
        self.nbytes = 0
        self.sharding: dict[str, Sharding] = {}
        self._checkpoint = checkpoint
        self._quantization = quantization
        wide = _OF_TABLES if _OF_TABLES in ops.capabilities().quantizations else None
        self._table_quantization = None if quantization is None else wide

    def linear(
        self,
        names: Sequence[str],
        rows: Sequence[int],
        columns: int,
        sharding: Sharding,
        *,
        bias: bool = False,
    ) -> Linear:
        """Stack projections into one.

        Args:
            names: Modules, without ``.weight`` and ``.bias``.
            rows: Output features of each.
            columns: Input features of all.
            sharding: How ranks divide them.
            bias: Whether they have biases.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` naming a tensor that is missing or not of the configured shape.
        """
        parts = [self._take(f"{name}.weight", (n, columns), sharding) for name, n in zip(names, rows, strict=True)]
        # The sum over ranks must add a row-sharded projection's bias once, so each rank may not hold a part of it.
        of_bias = Sharding.REPLICATED if sharding is Sharding.ROW else sharding
        biases = (
            [self._take(f"{name}.bias", (n,), of_bias) for name, n in zip(names, rows, strict=True)] if bias else []
        )
        weight = self.ops.pack_weight(parts, self.dtype, bias=biases, quantization=self._quantization)
        self.nbytes += weight.nbytes
        return Linear(self.ops, weight, sharding)

    def embedding(self, name: str, rows: int, columns: int, *, tied: bool) -> Embedding:
        """The table of token embeddings; ``tied`` where it is the output head too."""
        use = WeightUse.EMBEDDING_AND_LINEAR if tied else WeightUse.EMBEDDING
        raw = self._take(f"{name}.weight", (rows, columns), Sharding.VOCAB)
        weight = self.ops.pack_weight([raw], self.dtype, use=use, quantization=self._table_quantization)
        self.nbytes += weight.nbytes
        return Embedding(self.ops, weight, self.dtype)

    def head(self, name: str, rows: int, columns: int) -> Linear:
        """An output head of its own."""
        raw = self._take(f"{name}.weight", (rows, columns), Sharding.VOCAB)
        weight = self.ops.pack_weight([raw], self.dtype, quantization=self._table_quantization)
        self.nbytes += weight.nbytes
        return Linear(self.ops, weight, Sharding.VOCAB)

    def norm(self, name: str, size: int, eps: float) -> RMSNorm:
        """An RMS norm of ``size`` features."""
        raw = self._take(f"{name}.weight", (size,), Sharding.REPLICATED)
        return RMSNorm(self.ops, self.ops.tensor(raw, self.dtype), eps)

    def refuse_leftovers(self) -> None:
        """Raise if the checkpoint holds tensors that were not asked for.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` naming them.
        """
        self._checkpoint.refuse_leftovers(self.sharding)

    def _take(self, name: str, shape: tuple[int, ...], sharding: Sharding) -> RawWeight:
        raw = self._checkpoint.weight(name)
        if raw.shape != shape:
            raise corrupt(self._checkpoint.path, f"tensor {name!r} is {raw.shape}; the configuration makes it {shape}")
        self.sharding[name] = sharding
        return raw
