"""The metadata of a GGUF file read into a :class:`ModelConfig`.

Knows nothing of weights beyond which tensors the file has. What is stated but could not be honoured is refused by name.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .config import ModelConfig, RopeConfig
from .errors import corrupt, unsupported
from .fields import Fields
from .gguf import GGUFFile
from .gguf_families import GGUF_FAMILIES, MIXTRAL, GGUFFamily

_CHANGES_NUMBERS = (
    "attention.scale",
    "attention.max_alibi_bias",
    "attention.clamp_kqv",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_parallel_residual",
)
"""Keys that a family honours or whose file is refused."""
_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read_gguf_config(file: GGUFFile) -> ModelConfig:
    """Read the configuration that a GGUF file carries.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` naming a value that cannot be; ``UNSUPPORTED`` naming one that is not offered.
    """
    family = family_of(file)
    fields = Fields(file.path, _strip(file.metadata, f"{file.metadata['general.architecture']}."))
    _refuse_what_is_not_honoured(fields, file, family)
    hidden, heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    kv_heads = fields.integer("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise corrupt(
            file.path, f"attention.head_count ({heads}) is not a multiple of attention.head_count_kv ({kv_heads})"
        )
    head_dim = fields.integer("attention.key_length", None) or _head_dim(file, hidden, heads)
    if fields.integer("attention.value_length", head_dim) != head_dim:
        raise unsupported(file.path, "keys and values of different sizes are not offered")
    layers = fields.integer("block_count", maximum=10_000)
    context = fields.integer("context_length")
    window = fields.integer("attention.sliding_window", None, minimum=0) or None  # 0 is Phi-4's way to say none
    slides = [window is not None and family.slides(fields, layer) for layer in range(layers)]
    tokens = Fields(file.path, _strip(file.metadata, "tokenizer.ggml."))
    config = ModelConfig(
        architecture=family.architecture,
        model_type=family.model_type,
        vocab_size=_vocab_size(file),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.integer("feed_forward_length"),
        hidden_act=family.act,
        norm_eps=_norm_eps(fields),
        rope=_rope(fields, file, family, head_dim, context) if family.rotary else None,
        tie_word_embeddings="output.weight" not in file.tensors,
        windows=tuple(window if sliding else None for sliding in slides),
        max_position_embeddings=context,
        qkv_bias=_has_bias(file, "attn_q", "attn_qkv"),
        attention_out_bias=_has_bias(file, "attn_output"),
        mlp_bias=_has_bias(file, "ffn_up"),
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        bos_token_id=tokens.integer("bos_token_id", None, minimum=0),
        eos_token_ids=tuple(dict.fromkeys(i for key in _EOS_KEYS for i in tokens.integers(key))),
        pad_token_id=tokens.integer("padding_token_id", None, minimum=0),
        raw=MappingProxyType({key: value for key, value in file.metadata.items() if not isinstance(value, list)}),
    )
    return dataclasses.replace(config, **family.extras(fields, config))


def family_of(file: GGUFFile) -> GGUFFamily:
    """The family whose name a file carries.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for one that is not known, listing those that are.
    """
    name = Fields(file.path, file.metadata).text("general.architecture")
    if name == "llama" and file.metadata.get("llama.expert_count"):
        name = MIXTRAL
    family = GGUF_FAMILIES.get(name)
    if family is None:
        known = ", ".join(GGUF_FAMILIES)
        raise unsupported(file.path, f"architecture {name!r} is not offered in GGUF; known are {known}")
    return family


def _norm_eps(fields: Fields) -> float:
    of_layer_norm = fields.number("attention.layer_norm_epsilon", None)
    return of_layer_norm if of_layer_norm is not None else fields.number("attention.layer_norm_rms_epsilon")


def _has_bias(file: GGUFFile, *parts: str) -> bool:
    return any(f"blk.0.{part}.bias" in file.tensors for part in parts)


def _strip(metadata: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key[len(prefix) :]: value for key, value in metadata.items() if key.startswith(prefix)}


def _refuse_what_is_not_honoured(fields: Fields, file: GGUFFile, family: GGUFFamily) -> None:
    if fields.integer("expert_count", 0, minimum=0) and not family.experts:
        raise unsupported(file.path, "experts are not offered for this architecture in GGUF")
    for key in _CHANGES_NUMBERS:
        if key in fields.values and key not in family.honoured:
            raise unsupported(file.path, f"{key} ({fields.values[key]!r}) is not offered for this architecture")
    parts = file.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise unsupported(
            file.path, f"is one of {parts} parts; merge them into one file first (llama-gguf-split --merge)"
        )


def _head_dim(file: GGUFFile, hidden: int, heads: int) -> int:
    if hidden % heads:
        raise corrupt(file.path, f"embedding_length ({hidden}) is not a multiple of attention.head_count ({heads})")
    return hidden // heads


def _vocab_size(file: GGUFFile) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise corrupt(file.path, "has no embedding table (token_embd.weight)")
    return table.shape[0]


def _rope(fields: Fields, file: GGUFFile, family: GGUFFamily, head_dim: int, context: int) -> RopeConfig:
    theta = fields.number("rope.freq_base", 10_000.0)
    rotary_dim = fields.integer("rope.dimension_count", head_dim)
    if rotary_dim > head_dim or rotary_dim % 2:
        raise corrupt(file.path, f"rope.dimension_count is {rotary_dim}; it must be even and at most {head_dim}")
    if family.permuted and rotary_dim != head_dim:
        raise unsupported(
            file.path, f"a rotary embedding over {rotary_dim} of {head_dim} dimensions is not offered here"
        )
    if "rope_freqs.weight" in file.tensors:
        return RopeConfig(theta, rotary_dim, "factors", factors=_factors(file, "rope_freqs.weight", rotary_dim))
    if "rope_factors_long.weight" in file.tensors:
        return RopeConfig(
            theta,
            rotary_dim,
            "longrope",
            original_max_position_embeddings=fields.integer("rope.scaling.original_context_length"),
            attention_factor=fields.number("rope.scaling.attn_factor", 1.0),
            factors=_factors(file, "rope_factors_short.weight", rotary_dim),
            long_factors=_factors(file, "rope_factors_long.weight", rotary_dim),
            context=context,
        )
    kind = fields.text("rope.scaling.type", "linear" if "rope.scale_linear" in fields.values else "none")
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 1.0))
    if kind == "none" or factor == 1.0:
        return RopeConfig(theta, rotary_dim)
    original = fields.integer("rope.scaling.original_context_length", context)
    if kind == "linear":
        return RopeConfig(theta, rotary_dim, "linear", factor, original)
    if kind != "yarn" or "rope.scaling.yarn_log_multiplier" in fields.values:
        raise unsupported(
            file.path, f"rope scaling {kind!r} as this file states it is not offered; known are linear, yarn"
        )
    # ggml multiplies the file's factor with YaRN's own temperature.
    scale = fields.number("rope.scaling.yarn_attn_factor", fields.number("rope.scaling.attn_factor", 1.0))
    return RopeConfig(
        theta,
        rotary_dim,
        "yarn",
        factor,
        original,
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=scale * (1.0 + 0.1 * math.log(factor)) if factor > 1 else scale,
    )


def _factors(file: GGUFFile, name: str, rotary_dim: int) -> tuple[float, ...]:
    tensor, shape = file.tensors.get(name), (rotary_dim // 2,)
    if tensor is None or tensor.format.value != "f32" or tensor.shape != shape:
        found = "is missing" if tensor is None else f"has shape {tensor.shape}"
        raise corrupt(file.path, f"{name} {found}; {shape} in F32 was expected")
    factors = struct.unpack(f"<{rotary_dim // 2}f", file.data(tensor))
    if not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise corrupt(file.path, f"{name} holds factors that are not positive numbers")
    return factors
