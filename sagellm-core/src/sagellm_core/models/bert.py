"""BERT and its kin: MiniLM, E5, BGE, and the cross-encoders made of them.

Learned positions, post-norm layers, attention in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sagellm_core.layers.encoder import build_encoder_layer
from sagellm_core.layers.linear import Linear, Sharding, Tensor
from sagellm_core.layers.weights import Packer
from sagellm_core.loading.base import Checkpoint
from sagellm_protocol.backend import AttentionPlan, Backend
from sagellm_protocol.devices import DType

_UNUSED = ("embeddings.position_ids", "embeddings.token_type_ids", "pooler.dense.weight", "pooler.dense.bias")
"""What checkpoints hold beside what is read: buffers, and a head that only next-sentence prediction used."""


@dataclass(frozen=True)
class Head:
    """``out(tanh(dense(x)))`` of an input's first token.

    Attributes:
        ops: The backend.
        dense: ``E`` to ``E``.
        out: ``E`` to one.
    """

    ops: Backend[Tensor]
    dense: Linear
    out: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """``[R, E]`` to ``[R, 1]``."""
        return self.out(self.ops.softcap(self.dense(x), 1.0))  # bounded by one, it is tanh


class Bert:
    """``BertModel`` and ``BertForSequenceClassification``; implements :class:`~.encoder.Encoder`.

    Args:
        checkpoint: Configuration and weights.
        ops: The backend.
        dtype: Type that is computed in.
        quantization: A format of the backend's to quantise projections to at load.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` when tensors are missing, left over or of another shape than the configuration
            says.
    """

    root: ClassVar[str] = "bert"
    head: ClassVar[tuple[str, str]] = ("bert.pooler.dense", "classifier")
    """Modules of a classifier's two projections."""

    def __init__(
        self, checkpoint: Checkpoint, ops: Backend[Tensor], dtype: DType, quantization: str | None = None
    ) -> None:
        config = checkpoint.config
        assert config.encoder is not None, "the configuration is an encoder's"
        pack = Packer(checkpoint, ops, dtype, quantization)
        root = "" if "embeddings.word_embeddings.weight" in pack else f"{self.root}."
        table, width = f"{root}embeddings", config.hidden_size
        self._first_position = config.encoder.first_position
        places = config.max_position_embeddings + self._first_position
        self._tokens = pack.embedding(f"{table}.word_embeddings", config.vocab_size, width, tied=False)
        self._positions = pack.embedding(f"{table}.position_embeddings", places, width, tied=False)
        self._one_type = config.encoder.token_types == 1
        self._types = pack.embedding(f"{table}.token_type_embeddings", config.encoder.token_types, width, tied=False)
        self._norm = pack.layer_norm(f"{table}.LayerNorm", width, config.norm_eps)
        self._layers = [
            build_encoder_layer(pack, config, f"{root}encoder.layer.{index}") for index in range(config.num_layers)
        ]
        self._head = self._build_head(pack, width) if config.encoder.scores else None
        pack.refuse_leftovers(_UNUSED)
        self.weight_bytes = pack.nbytes
        self.sharding: Mapping[str, Sharding] = pack.sharding

    def _build_head(self, pack: Packer, width: int) -> Head:
        dense, out = self.head
        return Head(
            pack.ops,
            pack.linear([dense], (width,), width, Sharding.REPLICATED, bias=True),
            pack.linear([out], (1,), width, Sharding.REPLICATED, bias=True),
        )

    @property
    def scores(self) -> bool:
        """Whether it is a cross-encoder."""
        return self._head is not None

    def encode(self, ids: Tensor, positions: Tensor, types: Tensor, plan: AttentionPlan) -> Tensor:
        """Read whole inputs; see :meth:`Encoder.encode`."""
        # In the reference's order of addition, which shows in the last bits.
        x = self._tokens(ids) + self._types(types * 0 if self._one_type else types)
        x = self._norm(x + self._positions(positions + self._first_position))
        for layer in self._layers:
            x = layer(x, plan)
        return x

    def score(self, hidden: Tensor) -> Tensor:
        """The head's number for each input; see :meth:`Encoder.score`."""
        assert self._head is not None, "only a cross-encoder is asked for scores"
        return self._head(hidden)


class Roberta(Bert):
    """``RobertaModel``, ``XLMRobertaModel`` and their classifiers."""

    root = "roberta"
    head = ("classifier.dense", "classifier.out_proj")
