"""What a model is to the runner, and the frame that decoder-only models share: embedding, layers, final norm, head.

Knows nothing of slots, schedules or sampling; the forward pass reads tensors alone, so that a backend may capture it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from sagellm_core.layers.adapted import Adapting
from sagellm_core.layers.attention import build_attention
from sagellm_core.layers.decoder import MLP, DecoderLayer, Layer, SelfAttention
from sagellm_core.layers.embedding import InputEmbedding
from sagellm_core.layers.experts import build_experts
from sagellm_core.layers.fusion import fuse_layers, fuse_stack
from sagellm_core.layers.linear import Linear, Sharding, Tensor
from sagellm_core.layers.mlp import build_mlp
from sagellm_core.layers.norm import Norm
from sagellm_core.layers.rotary import resolve
from sagellm_core.layers.weights import Packer
from sagellm_core.loading.base import Checkpoint
from sagellm_core.loading.config import ModelConfig, RopeConfig
from sagellm_core.loading.errors import unsupported
from sagellm_protocol.backend import AttentionPlan, Backend, KVCache, KVSpec, RopeSpec
from sagellm_protocol.devices import DType

Rows = Sequence[int]
"""Places of rows among a step's tokens."""


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
    def varying(self) -> Sequence[str]:
        """What in it computes a row otherwise, in the last bits, beside other rows: weights, by name."""
        ...

    @property
    def sharding(self) -> Mapping[str, Sharding]:
        """How ranks divide each of its weights, by name."""
        ...

    def forward(
        self, ids: Tensor, positions: Tensor, cache: KVCache, plan: AttentionPlan, read: Rows | None = None
    ) -> Tensor:
        """Compute a step.

        Args:
            ids: Token ids of all sequences one after another, ``[T]``.
            positions: Their positions, ``[T]``.
            cache: The pool; this step's keys and values are written to it.
            plan: Attention metadata of this step.
            read: The rows whose hidden states are wanted, ``R`` of them in ascending order; ``None`` for all. Of the
                others a model leaves out what only these need.

        Returns:
            Hidden states after the final norm, ``[T, E]``, or ``[R, E]`` of the rows that are read.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token for rows of hidden states: ``[R, E]`` to ``[R, V]``."""
        ...


@runtime_checkable
class AdaptableModel(Model, Protocol):
    """A model whose projections adapters may change."""

    @property
    def adapting(self) -> Adapting:
        """Its projections, and the step under way."""
        ...

    @property
    def fused(self) -> bool:
        """Whether a step without adapters is computed in other ways than one with some, and rounds otherwise."""
        ...


class ModelClass(Protocol):
    """What loads a model: what the table and the entry points of ``sagellm.models`` give."""

    def __call__(self, checkpoint: Checkpoint, ops: Backend[Tensor], dtype: DType, quantization: str | None) -> Model:
        """Load ``checkpoint`` on ``ops``, computing in ``dtype``."""
        ...


@dataclass(frozen=True)
class Names:
    """What a family calls its modules.

    Attributes:
        root: The bare model within the one with a head; a checkpoint of the bare model leaves it out.
        embedding: The table of tokens, within the root.
        layers: The list of layers, within the root.
        norm: The final norm, within the root.
        head: The output head, outside the root.
        positions: The table of learned positions, within the root, if any.
        mlp: What follows attention, within a layer.
        derived: Endings of buffers that checkpoints hold though they follow from the configuration.
        beside: Beginnings of the names of parts that are not run, images' among them.
    """

    root: str = "model"
    embedding: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    head: str = "lm_head"
    positions: str | None = None
    mlp: str = "mlp"
    derived: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


class DecoderModel:
    """The frame of a decoder-only model, and Llama's way of filling it, from which a family says where it differs.

    What numbers can say (biases, windows, multipliers) is the configuration's; a family overrides :attr:`names`,
    :attr:`layer_norms`, :meth:`norm`, :meth:`attention`, :meth:`mlp`, :meth:`experts` or :meth:`decoder_layer` for what
    they cannot.

    Args:
        checkpoint: Configuration and weights.
        ops: The backend.
        dtype: Type that is computed in.
        quantization: A format of the backend's to quantise projections to at load.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` when tensors are missing, left over or of another shape than the configuration
            says; ``UNSUPPORTED`` for what the family does not offer.
    """

    names: ClassVar[Names] = Names()
    layer_norms: ClassVar[bool] = False
    """Norms of the residual stream are layer norms with biases."""

    def __init__(
        self, checkpoint: Checkpoint, ops: Backend[Tensor], dtype: DType, quantization: str | None = None
    ) -> None:
        self.config = config = checkpoint.config
        if config.unread is not None:
            raise unsupported(checkpoint.path, config.unread)
        self.ops = ops
        pack, names = Packer(checkpoint, ops, dtype, quantization), self.names
        self.adapting = pack.adapting
        self.adapting.root = f"{names.root}."
        root = "" if f"{names.embedding}.weight" in pack else f"{names.root}."
        vocab, width, tied = config.vocab_size, config.hidden_size, config.tie_word_embeddings and not config.headless
        tokens = pack.embedding(f"{root}{names.embedding}", vocab, width, tied=tied)
        positions = None
        if names.positions is not None:
            rows = config.max_position_embeddings
            positions = pack.embedding(f"{root}{names.positions}", rows, width, tied=False)
        self.embedding = InputEmbedding(tokens, config.multipliers.embedding, positions)
        self.ropes = _resolve(config)
        self.layers = [
            self.decoder_layer(pack, f"{root}{names.layers}.{index}", index) for index in range(config.num_layers)
        ]
        self.final_norm = self.norm(pack, f"{root}{names.norm}")
        self.head: Linear | None = None
        if not config.headless:
            self.head = Linear(ops, tokens.weight, Sharding.VOCAB) if tied else pack.head(names.head, vocab, width)
        spare = (f"{names.head}.weight",) if tied or config.headless else ()
        pack.refuse_leftovers((*names.derived, *spare), names.beside)
        self._stack = fuse_stack(ops, self.embedding, self.layers, self.final_norm)
        self._steps = fuse_layers(ops, self.layers)
        self.weight_bytes = pack.nbytes
        self.varying: Sequence[str] = pack.varying
        self.sharding: Mapping[str, Sharding] = pack.sharding

    def decoder_layer(self, pack: Packer, name: str, index: int) -> Layer:
        """Build a layer out of the module ``name``: norm, attention, norm, MLP."""
        return DecoderLayer(
            input_norm=self.norm(pack, f"{name}.input_layernorm"),
            attention=self.attention(pack, f"{name}.self_attn", index),
            post_norm=self.norm(pack, f"{name}.post_attention_layernorm"),
            mlp=self.mlp(pack, f"{name}.{self.names.mlp}", index),
            residual_scale=self.config.multipliers.residual,
        )

    def norm(self, pack: Packer, name: str) -> Norm:
        """Build a norm of the residual stream out of ``name``: root-mean-square, or a layer norm with a bias."""
        if self.layer_norms:
            return pack.layer_norm(name, self.config.hidden_size, self.config.norm_eps)
        return pack.norm(name, self.config.hidden_size, self.config.norm_eps, offset=self.config.norm_offset)

    def attention(self, pack: Packer, name: str, index: int) -> SelfAttention:
        """Build the attention of layer ``index`` out of ``name``."""
        return build_attention(pack, self.config, name, index, self.ropes[index])

    def mlp(self, pack: Packer, name: str, index: int) -> MLP:
        """Build the MLP of layer ``index`` out of ``name``: experts where the layer has some, else gated."""
        mixture = self.config.mixture
        if mixture is not None and mixture.sparse[index]:
            return self.experts(pack, name)
        return build_mlp(pack, self.config, name)

    def experts(self, pack: Packer, name: str) -> MLP:
        """Build a layer's experts out of ``name``."""
        return build_experts(pack, self.config, name)

    @property
    def kv_specs(self) -> tuple[KVSpec, ...]:
        """What each layer keeps of a token."""
        return tuple(layer.attention.spec for layer in self.layers)

    @property
    def fused(self) -> bool:
        """Whether a step without adapters is computed in other ways than one with some."""
        return self._stack is not None or any(
            step is not layer for step, layer in zip(self._steps, self.layers, strict=True)
        )

    def forward(
        self, ids: Tensor, positions: Tensor, cache: KVCache, plan: AttentionPlan, read: Rows | None = None
    ) -> Tensor:
        """Compute a step; see :meth:`Model.forward`."""
        adapted = bool(self.adapting.runs)
        if self._stack is not None and not adapted:
            return self._stack(ids, positions, cache, plan, read)
        x, residual = self.embedding(ids, positions), None
        # Units of a backend's own know no adapters.
        for step in self.layers if adapted else self._steps:
            x, residual = step(x, residual, positions, cache, plan)
        if read is not None:
            x, residual = self.ops.take_rows(x, read), None if residual is None else self.ops.take_rows(residual, read)
        if residual is None:
            return self.final_norm(x)
        return self.final_norm.after_add(x, residual)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token: ``[R, E]`` to ``[R, V]``, in the dtype computed in."""
        assert self.head is not None, "a model without a head is never asked for logits"
        multipliers, logits = self.config.multipliers, self.head(hidden)
        if multipliers.logits != 1.0:
            logits = logits * multipliers.logits
        if multipliers.logits_softcap is not None:
            logits = self.ops.softcap(logits, multipliers.logits_softcap)
        return logits


def _resolve(config: ModelConfig) -> list[RopeSpec | None]:
    """Each layer's rotary embedding. Equal ones are one object, by which backends know them."""
    specs: dict[RopeConfig | None, RopeSpec | None] = {None: None}
    for layer in range(config.num_layers):
        rope = config.rope_of(layer)
        if rope is not None and rope not in specs:
            specs[rope] = resolve(rope)
    return [specs[config.rope_of(layer)] for layer in range(config.num_layers)]
