"""What a model is to the runner, and the frame that decoder-only models share: embedding, layers, final norm, head.

Knows nothing of slots, schedules or sampling; the forward pass reads tensors alone, so that a backend may capture it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

from sagellm_core.layers.decoder import DecoderLayer
from sagellm_core.layers.fusion import fuse_layers, fuse_stack
from sagellm_core.layers.linear import Linear, Sharding, Tensor
from sagellm_core.layers.rotary import resolve
from sagellm_core.layers.weights import Packer
from sagellm_core.loading.base import Checkpoint
from sagellm_protocol.backend import AttentionPlan, Backend, KVCache, KVSpec
from sagellm_protocol.devices import DType


class Model(Protocol):
    """A model that is loaded on a backend."""

    @property
    def kv_specs(self) -> tuple[KVSpec, ...]:
        """What each layer keeps of a token."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes its weights occupy."""
        ...

    @property
    def sharding(self) -> Mapping[str, Sharding]:
        """How ranks divide each of its weights, by name."""
        ...

    def forward(self, ids: Tensor, positions: Tensor, cache: KVCache, plan: AttentionPlan) -> Tensor:
        """Compute a step.

        Args:
            ids: Token ids of all sequences one after another, ``[T]``.
            positions: Their positions, ``[T]``.
            cache: The pool; this step's keys and values are written to it.
            plan: Attention metadata of this step.

        Returns:
            Hidden states after the final norm, ``[T, E]``.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token for rows of hidden states: ``[R, E]`` to ``[R, V]``."""
        ...


class ModelClass(Protocol):
    """What loads a model: what the table and the entry points of ``sagellm.models`` give."""

    def __call__(self, checkpoint: Checkpoint, ops: Backend[Tensor], dtype: DType, quantization: str | None) -> Model:
        """Load ``checkpoint`` on ``ops``, computing in ``dtype``."""
        ...


class DecoderModel(ABC):
    """The frame of a decoder-only model. A family says what its layers are like, in :meth:`decoder_layer`.

    Args:
        checkpoint: Configuration and weights.
        ops: The backend.
        dtype: Type that is computed in.
        quantization: A format of the backend's to quantise projections to at load.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` when tensors are missing, left over or of another shape than the configuration
            says; ``UNSUPPORTED`` for what the family does not offer.
    """

    def __init__(
        self, checkpoint: Checkpoint, ops: Backend[Tensor], dtype: DType, quantization: str | None = None
    ) -> None:
        self.config = config = checkpoint.config
        self.ops = ops
        self.rope = resolve(config.rope) if config.rope is not None else None
        pack = Packer(checkpoint, ops, dtype, quantization)
        vocab, width, tied = config.vocab_size, config.hidden_size, config.tie_word_embeddings
        self.embedding = pack.embedding("model.embed_tokens", vocab, width, tied=tied)
        self.layers = [self.decoder_layer(pack, index) for index in range(config.num_layers)]
        self.norm = pack.norm("model.norm", width, config.norm_eps)
        self.head = Linear(ops, self.embedding.weight, Sharding.VOCAB) if tied else pack.head("lm_head", vocab, width)
        pack.refuse_leftovers()
        self._stack = fuse_stack(ops, self.embedding, self.layers, self.norm)
        self._steps = fuse_layers(ops, self.layers)
        self.weight_bytes = pack.nbytes
        self.sharding: Mapping[str, Sharding] = pack.sharding

    @abstractmethod
    def decoder_layer(self, pack: Packer, index: int) -> DecoderLayer:
        """Build one layer out of its weights."""

    @property
    def kv_specs(self) -> tuple[KVSpec, ...]:
        """What each layer keeps of a token."""
        return tuple(layer.attention.spec for layer in self.layers)

    def forward(self, ids: Tensor, positions: Tensor, cache: KVCache, plan: AttentionPlan) -> Tensor:
        """Compute a step; see :meth:`Model.forward`."""
        if self._stack is not None:
            return self._stack(ids, positions, cache, plan)
        x, residual = self.embedding(ids), None
        for step in self._steps:
            x, residual = step(x, residual, positions, cache, plan)
        if residual is None:
            return self.norm(x)
        return self.norm.after_add(x, residual)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token: ``[R, E]`` to ``[R, V]``, in the dtype computed in."""
        return self.head(hidden)
