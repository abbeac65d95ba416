"""From named raw tensors to the packed weights of layers, with every name accounted for.

Knows nothing of file formats, nor of what a layer computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sagellm_core.loading.base import Checkpoint
from sagellm_core.loading.errors import corrupt
from sagellm_protocol.backend import Backend, RawWeight, Weight, WeightUse
from sagellm_protocol.devices import DType

from . import raw as rearrange
from .adapted import Adaptable, Adapting
from .linear import Embedding, Linear, Sharding, Tensor
from .norm import HeadNorm, LayerNorm, RMSNorm

_OF_TABLES = "int8"
"""What embeddings and the output head are quantised to when projections are quantised at all."""


_BYTES: Mapping[DType, int] = {DType.FLOAT32: 4, DType.BFLOAT16: 2, DType.FLOAT16: 2}


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
        varying: Those of them by whose products a row is not told apart from what it is multiplied with.
        sharding: How ranks divide each weight used so far, by name.
        adapting: The projections packed so far that adapters may change.
    """

    def __init__(self, checkpoint: Checkpoint, ops: Backend[Tensor], dtype: DType, quantization: str | None) -> None:
        self.ops = ops
        self.dtype = dtype
        self.nbytes = 0
        self.varying: list[str] = []
        self.sharding: dict[str, Sharding] = {}
        self.adapting = Adapting(mixture=checkpoint.config.mixture is not None)
        self._checkpoint = checkpoint
        self._quantization = quantization
        wide = _OF_TABLES if _OF_TABLES in ops.capabilities().quantizations else None
        self._table_quantization = None if quantization is None else wide

    def __contains__(self, name: object) -> bool:
        """Whether the checkpoint has a tensor of this name."""
        return name in self._checkpoint

    def linear(
        self,
        names: Sequence[str],
        rows: Sequence[int],
        columns: int,
        sharding: Sharding,
        *,
        bias: bool = False,
        order: Sequence[int] | None = None,
    ) -> Linear:
        """Stack projections into one.

        Args:
            names: Modules, without ``.weight`` and ``.bias``.
            rows: Output features of each.
            columns: Input features of all.
            sharding: How ranks divide them.
            bias: Whether they have biases.
            order: Row numbers of a projection alone in the order they are wanted, if not the stored one.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` naming a tensor that is missing or not of the configured shape.
        """
        parts = [self._matrix(f"{name}.weight", (n, columns), sharding) for name, n in zip(names, rows, strict=True)]
        # The sum over ranks must add a row-sharded projection's bias once, so each rank may not hold a part of it.
        of_bias = Sharding.REPLICATED if sharding is Sharding.ROW else sharding
        biases = [self.take(f"{name}.bias", (n,), of_bias) for name, n in zip(names, rows, strict=True)] if bias else []
        if order is not None:
            assert len(names) == 1, "rows are reordered within one projection"
            parts, biases = ([rearrange.reorder_rows(part, order) for part in found] for found in (parts, biases))
        adaptable = Adaptable(self.adapting, tuple(names), tuple(rows), columns, order)
        self.adapting.projections.append(adaptable)
        return Linear(self.ops, self.packed(parts, biases), sharding, adaptable)

    def keep_from_adapters(self, module: str) -> None:
        """Let adapters change nothing within ``module``: its projections are computed in other ways."""
        kept = self.adapting.projections
        kept[:] = [one for one in kept if not any(name.startswith(f"{module}.") for name in one.names)]

    def packed(self, parts: Sequence[RawWeight], biases: Sequence[RawWeight] = ()) -> Weight:
        """Matrices that :meth:`take` gave, stacked into a projection."""
        return self._counted(
            parts[0].name, self.ops.pack_weight(parts, self.dtype, bias=biases, quantization=self._quantization)
        )

    def _counted(self, name: str, weight: Weight) -> Weight:
        self.nbytes += weight.nbytes
        if not weight.batch_invariant:
            self.varying.append(name)
        return weight

    def router(self, name: str, experts: int, columns: int, *, bias: bool = False) -> Weight:
        """A router's projection, in float32 and never quantised: a choice between experts is not undone."""
        raw = self.take(f"{name}.weight", (experts, columns), Sharding.REPLICATED)
        biases = [self.take(f"{name}.bias", (experts,), Sharding.REPLICATED)] if bias else []
        return self._counted(raw.name, self.ops.pack_weight([raw], DType.FLOAT32, bias=biases))

    def vector(self, name: str, size: int, dtype: DType) -> Tensor:
        """A vector that is no module's weight."""
        return self.ops.tensor(self.take(name, (size,), Sharding.REPLICATED), dtype)

    def tensor(self, name: str, shape: tuple[int, ...], sharding: Sharding) -> Tensor:
        """A matrix as a plain tensor."""
        raw = self.take(name, shape, sharding)
        self.nbytes += math.prod(shape) * _BYTES[self.dtype]
        self.varying.append(name)
        return self.ops.tensor(raw, self.dtype)

    def embedding(self, name: str, rows: int, columns: int, *, tied: bool) -> Embedding:
        """A table of embeddings; ``tied`` where it is the output head too."""
        use = WeightUse.EMBEDDING_AND_LINEAR if tied else WeightUse.EMBEDDING
        raw = self.take(f"{name}.weight", (rows, columns), Sharding.VOCAB)
        weight = self.ops.pack_weight([raw], self.dtype, use=use, quantization=self._table_quantization)
        if tied:
            self._counted(raw.name, weight)
        else:  # rows that are looked up are what they are
            self.nbytes += weight.nbytes
        return Embedding(self.ops, weight, self.dtype)

    def head(self, name: str, rows: int, columns: int) -> Linear:
        """An output head of its own."""
        raw = self.take(f"{name}.weight", (rows, columns), Sharding.VOCAB)
        weight = self._counted(raw.name, self.ops.pack_weight([raw], self.dtype, quantization=self._table_quantization))
        return Linear(self.ops, weight, Sharding.VOCAB)

    def norm(self, name: str, size: int, eps: float, *, offset: float = 0.0) -> RMSNorm:
        """An RMS norm of ``size`` features, whose weight is what is stored plus ``offset``."""
        raw = self.take(f"{name}.weight", (size,), Sharding.REPLICATED)
        weight = self.ops.tensor(rearrange.shift(raw, offset) if offset else raw, self.dtype)
        return RMSNorm(self.ops, weight, eps)

    def layer_norm(self, name: str, size: int, eps: float, *, bias: bool = True) -> LayerNorm:
        """A layer norm of ``size`` features."""
        weight = self._vector(f"{name}.weight", size)
        return LayerNorm(self.ops, weight, self._vector(f"{name}.bias", size) if bias else None, eps)

    def head_norm(self, names: str | Sequence[str], heads: int, size: int, eps: float) -> HeadNorm:
        """A layer norm of each of ``heads`` heads of ``size``, without bias.

        Args:
            names: The module whose weight is ``[heads, size]``, or a module a head.
            heads: Number of heads.
            size: Features of each.
            eps: Added to the variance.
        """
        if isinstance(names, str):
            raw = self.take(f"{names}.weight", (heads, size), Sharding.COLUMN)
            weight = self.ops.tensor(raw, self.dtype)
        else:
            weight = self.ops.concat([self._vector(f"{name}.weight", size) for name in names], 0).reshape(heads, size)
        return HeadNorm(self.ops, weight, self.ops.from_host([1.0] * size, self.dtype), eps)

    def refuse_leftovers(self, derived: Sequence[str] = (), beside: Sequence[str] = ()) -> None:
        """Raise if the checkpoint holds tensors that were not asked for.

        Args:
            derived: Endings of names that may be left over: buffers that follow from the configuration.
            beside: Beginnings of names of parts that are not run.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` naming them.
        """
        self._checkpoint.refuse_leftovers(self.sharding, derived, beside)

    def _vector(self, name: str, size: int) -> Tensor:
        return self.ops.tensor(self.take(name, (size,), Sharding.REPLICATED), self.dtype)

    def _matrix(self, name: str, shape: tuple[int, int], sharding: Sharding) -> RawWeight:
        if not self._checkpoint.config.transposed_linears:
            return self.take(name, shape, sharding)
        raw = self._checkpoint.weight(name)
        # What quantises a projection stores it the usual way, whichever way it was stored before.
        if raw.extra:
            return self._accounted(raw, shape, sharding)
        return rearrange.transpose(self._accounted(raw, shape[::-1], sharding))

    def take(self, name: str, shape: tuple[int, ...], sharding: Sharding) -> RawWeight:
        """A tensor as it is stored, accounted for.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` when it is missing, or not of ``shape``.
        """
        return self._accounted(self._checkpoint.weight(name), shape, sharding)

    def _accounted(self, raw: RawWeight, shape: tuple[int, ...], sharding: Sharding) -> RawWeight:
        if raw.shape != shape:
            raise corrupt(
                self._checkpoint.path, f"tensor {raw.name!r} is {raw.shape}; the configuration makes it {shape}"
            )
        self.sharding[raw.name] = sharding
        return raw
