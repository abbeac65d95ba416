"""The interface between an engine and a device: operations, memory, weights, graphs, collectives.

A backend is generic in its tensor ``T``. What it makes for itself (:class:`Weight`, :class:`KVCache`,
:class:`AttentionPlan`, :class:`Graph`, :class:`Group`) is opaque to the engine, which only passes it back. The engine
may apply to a ``T`` what the Python array API standard offers (indexing, ``reshape``, arithmetic, ``shape``); anything
else is an operation here.

Dimension letters: T tokens of a step over all sequences, S sequences of a step, E hidden size, O output features, Hq
query heads, Hkv key/value heads, D head size, V vocabulary, P tokens of a block, M blocks of a table, N blocks of the
pool, L layers, X experts, K experts of a token, I width of an expert.

Knows nothing of models, requests or scheduling. Provisional until a GPU backend has passed its conformance suite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

from typing_extensions import Buffer

from .devices import BackendCapabilities, DeviceInfo, DType

T = TypeVar("T")


class WeightFormat(str, Enum):
    """How a weight's raw bytes are to be read.

    Block formats are GGUF's, by GGUF's names. :data:`SCALED` formats keep numbers apart from their scales, as GPTQ, AWQ
    and checkpoints of 8-bit floats do: an element of row ``o`` and column ``e`` is
    ``scales[o, e // (E / G)] * (number - zeros[o, e // (E / G)])``, of :attr:`RawWeight.extra`.
    """

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q4_0 = "q4_0"
    Q4_1 = "q4_1"
    Q5_0 = "q5_0"
    Q5_1 = "q5_1"
    Q8_0 = "q8_0"
    Q2_K = "q2_k"
    Q3_K = "q3_k"
    Q4_K = "q4_k"
    Q5_K = "q5_k"
    Q6_K = "q6_k"
    MXFP4 = "mxfp4"
    INT4 = "int4"
    """Scaled. Two columns a byte, the first in the low half, unsigned."""
    INT8 = "int8"
    """Scaled. Signed bytes."""
    F8_E4M3 = "f8_e4m3"
    """Scaled. Floats of a sign, four bits of exponent and three of fraction, without infinities (OCP 8-bit floats)."""


SCALED: Mapping[WeightFormat, int] = {WeightFormat.INT4: 8, WeightFormat.INT8: 0, WeightFormat.F8_E4M3: 0}
"""Formats whose scales are tensors beside, with the zero point of those that state none."""

BLOCK_ELEMENTS: Mapping[WeightFormat, tuple[int, int]] = {
    WeightFormat.F32: (1, 4),
    WeightFormat.F16: (1, 2),
    WeightFormat.BF16: (1, 2),
    WeightFormat.Q4_0: (32, 18),
    WeightFormat.Q4_1: (32, 20),
    WeightFormat.Q5_0: (32, 22),
    WeightFormat.Q5_1: (32, 24),
    WeightFormat.Q8_0: (32, 34),
    WeightFormat.Q2_K: (256, 84),
    WeightFormat.Q3_K: (256, 110),
    WeightFormat.Q4_K: (256, 144),
    WeightFormat.Q5_K: (256, 176),
    WeightFormat.Q6_K: (256, 210),
    WeightFormat.MXFP4: (32, 17),
    WeightFormat.INT4: (2, 1),
    WeightFormat.INT8: (1, 1),
    WeightFormat.F8_E4M3: (1, 1),
}
"""Elements and bytes of one block of each format; a row is a whole number of blocks."""


@dataclass(frozen=True)
class RawWeight:
    """A weight as its file holds it, not yet on any device.

    Attributes:
        name: The tensor's name in the checkpoint, for messages.
        format: How ``data`` is to be read (a :class:`WeightFormat` value, or a name that a backend's capabilities
            list).
        shape: Logical shape in elements, rows first: ``(O, E)`` for a linear, ``(V, E)`` for an embedding, ``(E,)`` for
            a vector.
        data: The bytes, C-contiguous, rows first; may be a view of a mapped file.
        extra: Further tensors, by name. Of a format of :data:`SCALED`: ``scales`` ``(O, G)`` in a format of plain
            numbers, where G groups of columns are equally wide; ``zeros``, likewise, where the zero point is not the
            format's own; ``columns`` ``(E,)``, format ``i32``, where columns are stored in another order: the
            ``i``-th that is stored is column ``columns[i]`` of the weight.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    data: Buffer
    extra: Mapping[str, RawWeight] = field(default_factory=dict)


class WeightUse(str, Enum):
    """What a weight is for, so that a backend can lay it out."""

    LINEAR = "linear"
    EMBEDDING = "embedding"
    EMBEDDING_AND_LINEAR = "embedding_and_linear"
    """A tied table: looked up by row and multiplied as the output head."""


class Weight(Protocol):
    """A packed weight. Made by ``pack_weight``; its insides are the backend's."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape, ``(O, E)``."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes it occupies on the device."""
        ...

    @property
    def batch_invariant(self) -> bool:
        """Whether a row's product is the same, bit by bit, whatever rows are multiplied with it."""
        ...


@dataclass(frozen=True)
class KVSpec:
    """What one layer keeps of each token.

    Attributes:
        num_kv_heads: Hkv.
        head_dim: D of keys.
        value_dim: D of values; 0 where values are read out of the keys (latent attention).
        window: Tokens back that are visible, the token itself included; ``None`` for all.
        latent_dim: Where ``value_dim`` is 0, the leading dimensions of a key that are its value.
        sinks: Attention over these is given sinks.
        chunked: Only tokens of the same run of ``window`` tokens are visible, counted from a sequence's first: those
            from ``position // window * window`` on (Llama 4).
    """

    num_kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None = None
    latent_dim: int = 0
    sinks: bool = False
    chunked: bool = False


class KVCache(Protocol):
    """A paged key/value pool for all layers. Made by ``allocate_kv``."""

    @property
    def specs(self) -> tuple[KVSpec, ...]:
        """One a layer."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks of each layer, N."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens of a block, P."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the whole pool, whether touched yet or not."""
        ...

    @property
    def batch_invariant(self) -> bool:
        """Whether attention over it gives a token the same, bit by bit, however tokens are divided into steps."""
        ...

    @property
    def layout(self) -> str:
        """Name and version of how a block's bytes lie, as they are exported; equal only where they may be imported."""
        ...


@dataclass(frozen=True)
class AttentionBatch:
    """Who attends to what in one step: host integers, planned once and used by every layer.

    Attributes:
        query_lens: New tokens of each sequence, ``[S]``; they sum to T.
        context_lens: Tokens of each sequence that are cached once this step's are written, ``[S]``.
        block_tables: For each group of layers with equal :class:`KVSpec` (in order of first appearance), the block ids
            of each sequence in order of position, ``[G][S][M_s]``. Ids beyond those that ``context_lens`` need mean
            nothing, so that an array whose rows are equally long serves as well.
    """

    query_lens: Sequence[int]
    context_lens: Sequence[int]
    block_tables: Sequence[Sequence[Sequence[int]]]


class AttentionPlan(Protocol):
    """Attention metadata on the device. Made by ``plan_attention``, good for one step."""


class Graph(Protocol):
    """A captured computation. Made by ``capture``."""

    def replay(self) -> None:
        """Run it again over the same buffers."""
        ...


class Group(Protocol):
    """Ranks that communicate. Made by ``make_group``."""

    @property
    def rank(self) -> int:
        """This process's place in the group."""
        ...

    @property
    def size(self) -> int:
        """Number of ranks."""
        ...


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding, already resolved to frequencies.

    Attributes:
        inv_freq: Angular frequency of each rotated pair, ``[rotary_dim / 2]``, as host floats, after any scaling.
        rotary_dim: Leading dimensions of a head that are rotated.
        interleaved: Pairs are ``(0, 1), (2, 3), …`` rather than ``(0, d/2), (1, d/2 + 1), …``.
        attention_factor: Multiplies cosine and sine (YaRN).
    """

    inv_freq: tuple[float, ...]
    rotary_dim: int
    interleaved: bool = False
    attention_factor: float = 1.0


@dataclass(frozen=True)
class RoutingSpec:
    """How a token's experts are chosen out of X, and what each one's share is.

    Scores are the softmax or the sigmoid of the router's logits. The best ``top_k`` are taken: of all, or of the
    ``top_groups`` best of ``groups`` equal runs of experts, a group being as good as the sum of its ``group_best``
    best scores (DeepSeek V2 and V3). A correction is added to scores for choosing alone.

    Attributes:
        top_k: Experts of a token, K.
        scoring: ``softmax`` or ``sigmoid``.
        renormalize: Make the shares of the chosen sum to one.
        scale: Multiplies the shares, last.
        groups: Runs that experts are divided into.
        top_groups: Runs a token may choose from.
        group_best: Scores that a run is judged by.
    """

    top_k: int
    scoring: str = "softmax"
    renormalize: bool = False
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    group_best: int = 1


@dataclass(frozen=True)
class GateSpec:
    """What becomes of gate and up: ``act(gate) * (up + shift)``, both bounded before where there is a limit.

    Attributes:
        activation: ``silu``, ``gelu`` or ``gelu_tanh``.
        slope: ``silu`` alone: of ``gate * sigmoid(slope * gate)``.
        shift: Added to ``up``.
        limit: Bounds ``gate`` from above and ``up`` on both sides (GPT-OSS).
        shares_first: An expert is given its share of the token, rather than the token its share of the expert's output
            (Llama 4).
    """

    activation: str = "silu"
    slope: float = 1.0
    shift: float = 0.0
    limit: float | None = None
    shares_first: bool = False


@dataclass(frozen=True)
class LowRank(Generic[T]):
    """What an adapter adds to one packed weight: ``up @ down`` for each of the matrices stacked in it that it adapts.

    Low-rank adaptation (LoRA, Hu et al. 2021); its scale is in ``up`` already. All ``down`` are one tensor, read in one
    product, and each ``up`` reads its own part of what that gives.

    Attributes:
        down: ``[R, E]``, R the ranks of all matrices together.
        up: Of each matrix, ``[O_i, R_i]``; the ``R_i`` sum to R.
        begins: The output feature at which each of them begins.
    """

    down: T
    up: tuple[T, ...]
    begins: tuple[int, ...]


@dataclass(frozen=True)
class AdaptedRows(Generic[T]):
    """Rows of an activation that go through an adapter.

    Attributes:
        begin: The first.
        end: One past the last.
        low_rank: What the adapter adds to the weight at hand.
    """

    begin: int
    end: int
    low_rank: LowRank[T]


@dataclass(frozen=True)
class SamplingBatch:
    """How each of R rows of logits is to be sampled: host values, one entry a row unless said otherwise.

    Operations apply in this order, as :class:`~sagellm_protocol.sampling.SamplingParams` says: allowed tokens,
    penalties, biases, banned tokens, temperature, top-k, top-p, min-p, draw.

    Attributes:
        temperature: 0 is greedy; of equal logits the lowest token id wins.
        top_k: 0 keeps all.
        top_p: 1 keeps all.
        min_p: 0 keeps all.
        uniform: The number in [0, 1) that decides the draw by inverse cumulative distribution over token ids in
            ascending order; made by the engine from the request's seed and the position, so that neighbours cannot
            change it.
        repetition_penalty, presence_penalty, frequency_penalty: Neutral at 1, 0, 0.
        prompt_tokens, output_tokens: Token ids the penalties look at; empty for rows without penalties.
        bias: Token id to added logit; empty for rows without.
        banned: Token ids that may not be produced.
        allowed: Token ids that alone may be produced, or ``None`` for all.
        mask: Tokens that alone may be produced, as bits: token ``t`` may where bit ``t % 32`` of word ``t // 32`` is
            set. ``[ceil(V / 32)]`` int32 a row, or ``None`` for all; empty where no row has one. Beside ``allowed``
            both hold.
        logprobs: Number of likeliest alternatives to report, or ``None`` for no log-probabilities at all.
    """

    temperature: Sequence[float]
    top_k: Sequence[int]
    top_p: Sequence[float]
    min_p: Sequence[float]
    uniform: Sequence[float]
    repetition_penalty: Sequence[float]
    presence_penalty: Sequence[float]
    frequency_penalty: Sequence[float]
    prompt_tokens: Sequence[Sequence[int]]
    output_tokens: Sequence[Sequence[int]]
    bias: Sequence[Mapping[int, float]]
    banned: Sequence[Sequence[int]]
    allowed: Sequence[Sequence[int] | None]
    logprobs: Sequence[int | None]
    mask: Sequence[Sequence[int] | None] = ()


@dataclass(frozen=True)
class RowLogprobs:
    """Log-probabilities of one row in the model's own distribution.

    Attributes:
        logprob: Of the token that was drawn.
        rank: Its rank, 1 for the likeliest.
        top: The likeliest tokens with their log-probabilities, likeliest first.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Sampled:
    """What ``sample`` drew.

    Attributes:
        token_ids: One a row.
        logprobs: One a row, ``None`` where not asked for.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[RowLogprobs | None]


@dataclass(frozen=True)
class FusableUnit:
    """A part of a model offered to a backend that may compute it whole.

    An ``mlp`` has ``config["activation"]`` (``silu``, ``gelu``, ``gelu_tanh``), the weights ``gate_up`` and ``down``,
    and is called with ``x [T, E]`` for ``[T, E]``.

    A ``layer`` is a pre-norm decoder layer. It adds to an ``mlp`` the weights ``qkv`` and ``out``, the vectors
    ``input_norm``, ``post_norm`` and, where heads are normalised, ``q_norm`` and ``k_norm``, and in ``config``
    ``num_heads``, ``num_kv_heads``, ``head_dim``, ``scale``, ``window``, ``rope`` (a :class:`RopeSpec` or ``None``),
    ``eps`` and ``layer`` (its place in the cache). It is called with ``(x, residual, positions, cache, plan)``, where
    ``x [T, E]`` is the output of the layer before, not yet added to ``residual [T, E]`` (``None`` for the first), and
    returns its own output and residual likewise.

    A ``decoder`` is the whole stack: each layer's roles under ``layers.{i}.``, in ``config`` too, the weight
    ``embedding``, the vector ``norm``, and in ``config`` ``num_layers``, ``dtype`` and the last norm's ``eps``. It is
    called with ``(ids, positions, cache, plan, read)`` for ``[T, E]`` after the last norm, or ``[R, E]`` of the rows
    that ``read`` names in ascending order (``None`` for all).

    Attributes:
        kind: What it is (``mlp``, ``layer``, ``decoder``); the names a backend lists in ``fused_units``.
        config: Numbers that describe it (sizes, epsilons, activation by name).
        weights: Its packed weights by role. For a unit of layers, roles carry the layer's number (``layers.3.qkv``).
        vectors: Its unpacked tensors by role (norm weights, biases).
    """

    kind: str
    config: Mapping[str, Any]
    weights: Mapping[str, Weight]
    vectors: Mapping[str, Any]


@dataclass(frozen=True)
class MemoryInfo:
    """Bytes of the device this process may use.

    Attributes:
        total_bytes: All there is for this process.
        free_bytes: What is left of it now.
    """

    total_bytes: int
    free_bytes: int


class Backend(Protocol[T]):
    """One device's way of computing. An instance belongs to one process and one device."""

    @property
    def name(self) -> str:
        """Entry point it was made by."""
        ...

    @property
    def device(self) -> DeviceInfo:
        """The device it drives."""
        ...

    def capabilities(self) -> BackendCapabilities:
        """What it can do here, as probed."""
        ...

    # -- tensors ------------------------------------------------------------------------------------------------------

    def tensor(self, raw: RawWeight, dtype: DType) -> T:
        """Bring a raw (unquantised or quantised) weight to the device as a plain tensor of its logical shape."""
        ...

    def from_host(self, values: Sequence[int] | Sequence[float] | Buffer, dtype: DType) -> T:
        """Bring host numbers to the device as a one-dimensional tensor. A buffer holds elements of ``dtype``."""
        ...

    def to_host(self, tensor: T) -> list[Any]:
        """Bring a tensor's values back as nested lists; waits for the device."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: DType) -> T:
        """An uninitialised tensor."""
        ...

    def concat(self, tensors: Sequence[T], axis: int) -> T:
        """Join tensors along ``axis``; of floating types that differ, in the widest."""
        ...

    def synchronize(self) -> None:
        """Wait until everything submitted so far is done."""
        ...

    # -- weights and operations ---------------------------------------------------------------------------------------

    def pack_weight(
        self,
        parts: Sequence[RawWeight],
        dtype: DType,
        *,
        use: WeightUse = WeightUse.LINEAR,
        bias: Sequence[RawWeight] = (),
        quantization: str | None = None,
    ) -> Weight:
        """Lay weights out for :meth:`linear` or :meth:`embedding`.

        Args:
            parts: Matrices of equal E, stacked along their rows into one (query, key and value; gate and up). Their
                formats may differ.
            dtype: Type that is computed in.
            use: What it is for.
            bias: One vector for each part, or nothing.
            quantization: What to quantise to at load (``int8``, ``int4``), among ``capabilities().quantizations``.

        Raises:
            SageLLMError: ``UNSUPPORTED``, naming it, for a format or quantisation this backend does not take.
        """
        ...

    def linear(self, x: T, weight: Weight, adapters: Sequence[AdaptedRows[T]] | None = None) -> T:
        """``x @ weight.T + bias``: ``[T, E]`` to ``[T, O]`` in ``x``'s dtype.

        Args:
            x: Rows of any activation.
            weight: A packed weight.
            adapters: Runs of rows to which an adapter adds ``x @ down.T @ up.T``; they do not overlap, and the other
                rows come out as they would without any. ``None`` when no row has one.
        """
        ...

    def embedding(self, ids: T, weight: Weight, dtype: DType) -> T:
        """Rows of a table: ids ``[T]`` to ``[T, E]``."""
        ...

    def rms_norm(self, x: T, weight: T, eps: float) -> T:
        """Root-mean-square norm over the last axis, accumulated in float32, in ``x``'s dtype (Zhang, Sennrich 2019)."""
        ...

    def add_rms_norm(self, x: T, residual: T, weight: T, eps: float) -> tuple[T, T]:
        """``s = x + residual``; returns ``(rms_norm(s), s)``. May overwrite either argument."""
        ...

    def layer_norm(self, x: T, weight: T, bias: T | None, eps: float) -> T:
        """Layer norm over the last axis."""
        ...

    def rope(self, q: T, k: T, positions: T, spec: RopeSpec) -> tuple[T, T]:
        """Rotate queries ``[T, Hq, D]`` and keys ``[T, Hkv, D]`` to ``positions`` ``[T]``. May overwrite both."""
        ...

    def silu_mul(self, gate_up: T) -> T:
        """``silu(gate) * up`` of ``[T, 2 I]`` whose first half is the gate: ``[T, I]``."""
        ...

    def gelu_mul(self, gate_up: T, *, approximate: bool) -> T:
        """``gelu(gate) * up`` likewise; ``approximate`` is the tanh form."""
        ...

    def gelu(self, x: T, *, approximate: bool) -> T:
        """``gelu(x)``, for MLPs without a gate; ``approximate`` is the tanh form. May overwrite ``x``."""
        ...

    def softcap(self, x: T, cap: float) -> T:
        """``cap * tanh(x / cap)``: bounds logits smoothly to ``(-cap, cap)``. May overwrite ``x``."""
        ...

    def headwise(self, x: T, weight: T) -> T:
        """Each head through a matrix of its own: ``[T, H, D]`` by ``[H, D, O]`` to ``[T, H, O]``."""
        ...

    def route(self, x: T, router: Weight, spec: RoutingSpec, correction: T | None = None) -> tuple[T, T]:
        """Choose each token's experts.

        Logits are computed in float32 whatever ``x`` is: two experts may be close, and a choice is not undone.

        Args:
            x: ``[T, E]``.
            router: ``(X, E)``, packed in float32.
            spec: How to choose.
            correction: Added to scores for choosing, ``[X]``, if any.

        Returns:
            The chosen experts, whole numbers ``[T, K]`` in any order, and their shares, ``[T, K]`` in float32.
        """
        ...

    def moe(self, x: T, experts: T, shares: T, gate_up: Sequence[Weight], down: Sequence[Weight], gate: GateSpec) -> T:
        """Mixture of gated experts: ``sum over k of shares[:, k] * down[e](gate(gate_up[e](x)))``, e = experts[:, k].

        Args:
            x: ``[T, E]``.
            experts: ``[T, K]``, as :meth:`route` chose.
            shares: ``[T, K]`` in float32.
            gate_up: A weight ``(2 I, E)`` for each expert, gate first.
            down: A weight ``(E, I)`` for each expert.
            gate: What becomes of gate and up; with ``shares_first``, ``x`` is multiplied by ``shares[:, k]`` instead.

        Returns:
            ``[T, E]`` in ``x``'s dtype.
        """
        ...

    def take_rows(self, x: T, rows: Sequence[int]) -> T:
        """``x[rows]``: ``[T, E]`` to ``[R, E]``."""
        ...

    def segment_sum(self, x: T, lengths: Sequence[int]) -> T:
        """Sum the rows of each of S sequences that lie one after another, in float32: ``[T, E]`` to ``[S, E]``.

        Args:
            x: Rows of any activation.
            lengths: Rows of each sequence, at least one; they sum to T.
        """
        ...

    # -- attention without a cache ------------------------------------------------------------------------------------

    def plan_segments(self, lengths: Sequence[int]) -> AttentionPlan:
        """Bring the lengths of sequences that lie one after another to the device, outside the forward pass.

        Args:
            lengths: Tokens of each sequence, at least one; they sum to T.
        """
        ...

    def segment_attention(self, q: T, k: T, v: T, plan: AttentionPlan, *, scale: float) -> T:
        """Attend within each sequence, to earlier and later tokens alike, and keep nothing.

        Args:
            q: ``[T, Hq, D]``, the sequences of the plan one after another.
            k: ``[T, Hkv, D]``.
            v: ``[T, Hkv, D]``.
            plan: Made by :meth:`plan_segments`.
            scale: Multiplies the scores.

        Returns:
            ``[T, Hq, D]`` in ``q``'s dtype; softmax runs in float32.
        """
        ...

    # -- paged attention ----------------------------------------------------------------------------------------------

    def allocate_kv(self, specs: Sequence[KVSpec], num_blocks: int, block_size: int, dtype: DType) -> KVCache:
        """A pool of ``num_blocks`` blocks for each layer; its pages are touched only when written."""
        ...

    def plan_attention(self, cache: KVCache, batch: AttentionBatch) -> AttentionPlan:
        """Bring a step's attention metadata to the device, outside the forward pass."""
        ...

    def attention(
        self,
        q: T,
        k: T,
        v: T | None,
        cache: KVCache,
        layer: int,
        plan: AttentionPlan,
        *,
        scale: float,
        softcap: float | None = None,
        sinks: T | None = None,
    ) -> T:
        """Write this step's keys and values to the cache, then attend causally to everything cached.

        Args:
            q: ``[T, Hq, D]``, the sequences of the plan one after another.
            k: ``[T, Hkv, D]``.
            v: ``[T, Hkv, Dv]``; ``None`` where values are the leading ``latent_dim`` dimensions of keys.
            cache: The pool; written in place.
            layer: Which of its layers.
            plan: Of this step.
            scale: Multiplies the scores.
            softcap: Scores become ``softcap * tanh(score / softcap)``.
            sinks: For each query head a score of no key, that takes a share of the softmax and gives no value,
                ``[Hq]``; only over layers whose spec has ``sinks`` (Xiao et al. 2023, as GPT-OSS has learned them).

        Returns:
            ``[T, Hq, Dv]`` in ``q``'s dtype; softmax runs in float32.
        """
        ...

    def copy_blocks(self, cache: KVCache, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks ``source → target`` in every layer."""
        ...

    def export_blocks(self, cache: KVCache, blocks: Sequence[int]) -> bytes:
        """The blocks' contents in every layer, in an order that :meth:`import_blocks` of the same layout reads."""
        ...

    def import_blocks(self, cache: KVCache, blocks: Sequence[int], data: Buffer) -> None:
        """Write contents that :meth:`export_blocks` made into ``blocks``.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` when ``data`` is not of this layout's size.
        """
        ...

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sample(self, logits: T, batch: SamplingBatch) -> Sampled:
        """Draw one token from each row of ``[R, V]``. May overwrite ``logits``."""
        ...

    def logprobs_of(self, logits: T, token_ids: Sequence[int], top: int) -> Sequence[RowLogprobs]:
        """Log-probabilities of given tokens, one a row of ``[R, V]``, with the ``top`` likeliest."""
        ...

    # -- larger units, graphs, ranks ----------------------------------------------------------------------------------

    def fuse(self, unit: FusableUnit) -> Callable[..., Any] | None:
        """A faster callable for a whole unit, or ``None``. Operation by operation is the truth it is tested against."""
        ...

    def capture(self, run: Callable[[], None]) -> Graph:
        """Record what ``run`` does over persistent buffers.

        Raises:
            SageLLMError: ``UNSUPPORTED`` where ``capabilities().graphs`` is false.
        """
        ...

    def make_group(self, rank: int, size: int, rendezvous: str) -> Group:
        """Join ranks that meet at ``rendezvous`` (a URL). A group of one needs no meeting."""
        ...

    def all_reduce(self, x: T, group: Group) -> T:
        """Sum over ranks."""
        ...

    def all_gather(self, x: T, group: Group, axis: int) -> T:
        """Join ranks' tensors along ``axis``."""
        ...

    # -- memory -------------------------------------------------------------------------------------------------------

    def memory(self) -> MemoryInfo:
        """What this process may use of the device now."""
        ...
