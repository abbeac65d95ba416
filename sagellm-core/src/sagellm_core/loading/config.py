"""What a checkpoint says of its model: sizes, rotary embedding, biases, windows, multipliers, special tokens.

Knows nothing of files (:mod:`.hf_config` and :mod:`.gguf_config` read them) nor of which architectures can be run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from .mixture import LatentConfig, MixtureConfig

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope", "factors"]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding as a checkpoint describes it; layers resolve it to frequencies.

    Attributes:
        theta: Base of the frequencies.
        rotary_dim: Leading dimensions of a head that are rotated.
        kind: How frequencies are scaled to longer contexts. ``factors`` divides each by its entry of ``factors``; the
            others are what ``transformers`` calls them.
        factor: How much longer the context became (all kinds but ``default`` and ``factors``).
        original_max_position_embeddings: Context the model was first trained at.
        low_freq_factor, high_freq_factor: ``llama3``: wavelengths beyond ``original / low`` are scaled whole, those
            below ``original / high`` not at all.
        beta_fast, beta_slow: ``yarn``: rotations over the original context at which scaling begins and is whole.
        attention_factor: ``yarn``: multiplies cosine and sine; absent, it follows from ``factor`` and both ``mscale``.
        mscale, mscale_all_dim: ``yarn``: weights of the two logarithms that ``attention_factor`` follows from.
        truncate: ``yarn``: round the bounds of the ramp to whole dimensions.
        factors: ``factors``: one divisor for each rotated pair, ``[rotary_dim / 2]``; ``longrope``: those of contexts
            up to the original.
        long_factors: ``longrope``: those of longer contexts.
        context: ``longrope``: longest context that will be run, which decides between the two for all positions: keys
            that are cached cannot be turned anew when a sequence outgrows the original context.
        interleaved: Pairs are ``(0, 1), (2, 3), …`` rather than ``(0, d/2), (1, d/2 + 1), …``.
    """

    theta: float
    rotary_dim: int
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    context: int | None = None
    interleaved: bool = False


@dataclass(frozen=True)
class Multipliers:
    """Constants that a family scales or bounds its activations by.

    Attributes:
        embedding: Multiplies the embeddings of tokens.
        attention: Multiplies the scores of attention; ``None`` is the usual ``head_dim ** -0.5``.
        attention_softcap: Bounds them by ``cap * tanh(score / cap)``, if given.
        residual: Multiplies what attention and the MLP each add to the residual stream.
        logits: Multiplies the logits.
        logits_softcap: Bounds them likewise, after that.
    """

    embedding: float = 1.0
    attention: float | None = None
    attention_softcap: float | None = None
    residual: float = 1.0
    logits: float = 1.0
    logits_softcap: float | None = None


@dataclass(frozen=True)
class Temperature:
    """How queries of far positions are sharpened, on layers without a rotary embedding (Llama 4).

    They are multiplied by ``1 + scale * log(1 + floor((position + 1) / every))`` (Nakanishi 2025).

    Attributes:
        every: Positions after which it rises.
        scale: Of the logarithm.
    """

    every: int
    scale: float


@dataclass(frozen=True)
class EncoderConfig:
    """What is said of encoders alone.

    Attributes:
        token_types: Rows of the table of token types.
        first_position: Row of the table of positions that an input's first token takes.
        scores: A head makes one number of each input: a cross-encoder.
        sigmoid: That number goes through a sigmoid.
    """

    token_types: int
    first_position: int
    scores: bool = False
    sigmoid: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """One model, by the numbers its weights were made for.

    Attributes:
        architecture: Class name of the reference implementation (``LlamaForCausalLM``).
        model_type: Family name (``llama``).
        vocab_size: Rows of the embedding table.
        hidden_size: Width of the residual stream.
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key/value heads; divides ``num_heads``.
        head_dim: Dimensions of a head.
        intermediate_size: Width of the MLP.
        hidden_act: Activation by name (``silu``).
        norm_eps: Added to the mean square before its root is taken.
        rope: Rotary embedding; absent for models without one.
        tie_word_embeddings: The output head is the embedding table.
        qkv_bias: Query, key and value projections have biases.
        attention_out_bias: The attention output projection has one.
        mlp_bias: The MLP's projections have them.
        qk_norm: Queries and keys are normalised.
        norm_offset: Added to the weights of RMS norms as they are stored.
        layer_ropes: For each layer its rotary embedding, where layers differ or some have none; else empty.
        multipliers: Constants that activations are scaled or bounded by.
        parallel: Attention and the MLP of a layer run side by side.
        parallel_norms: Norms that open a layer whose halves run side by side: one for both, or one each.
        qkv_by_group: A fused query, key and value projection stores its rows group by group (each key/value head's
            queries, key and value) rather than all queries first.
        transposed_linears: Projections are stored with input features as rows.
        mixture: Its experts, if it has any.
        latent: Its attention's sizes, where that is latent; ``head_dim`` is that of queries then.
        draft_layers: Layers behind the last that predict further tokens, and are not run.
        windows: For each layer, tokens back that are visible (the token itself included), or ``None`` for all.
        chunked: A window is the run of that many tokens which a token is in, rather than those that lead up to it.
        temperature: How queries are sharpened on layers without a rotary embedding, if they are.
        max_position_embeddings: Context the model is made for, any rope scaling included.
        encoder: What is said of encoders; absent for decoders.
        headless: It has no output head: its hidden states are what is wanted.
        bos_token_id: Beginning of text.
        eos_token_ids: Tokens that end an answer.
        pad_token_id: Padding.
        quantization: Method that the weights were quantised with before they were saved, if they were.
        dtype: Type the weights were saved in, where the checkpoint says so.
        unread: Why only an outline of it was read (sizes, context, special tokens), where its family is not known here
            and what it says is not what other families say.
        raw: Everything the checkpoint said, as it said it.
    """

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    hidden_act: str
    norm_eps: float
    rope: RopeConfig | None
    tie_word_embeddings: bool
    windows: tuple[int | None, ...]
    max_position_embeddings: int
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norm_offset: float = 0.0
    layer_ropes: tuple[RopeConfig | None, ...] = ()
    multipliers: Multipliers = field(default_factory=Multipliers)
    parallel: bool = False
    parallel_norms: int = 1
    qkv_by_group: bool = False
    transposed_linears: bool = False
    mixture: MixtureConfig | None = None
    latent: LatentConfig | None = None
    draft_layers: int = 0
    chunked: bool = False
    temperature: Temperature | None = None
    encoder: EncoderConfig | None = None
    headless: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    quantization: str | None = None
    dtype: str | None = None
    unread: str | None = None
    raw: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False, compare=False)

    def rope_of(self, layer: int) -> RopeConfig | None:
        """Rotary embedding of a layer."""
        return self.layer_ropes[layer] if self.layer_ropes else self.rope

    def run_to(self, context: int) -> ModelConfig:
        """The same model, its rotary embedding chosen for sequences of no more than ``context`` tokens."""
        return replace(
            self,
            rope=_run_to(self.rope, context),
            layer_ropes=tuple(_run_to(rope, context) for rope in self.layer_ropes),
        )


def _run_to(rope: RopeConfig | None, context: int) -> RopeConfig | None:
    return replace(rope, context=context) if rope is not None and rope.kind == "longrope" else rope
