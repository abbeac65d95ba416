"""``config.json`` and ``generation_config.json`` of a Hugging Face folder, read into a :class:`ModelConfig`.

Knows nothing of weights. What is stated but could not be honoured (an unknown rope type, a quantisation) is refused by
name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .config import ModelConfig, RopeConfig, RopeKind
from .errors import corrupt, unsupported
from .fields import Fields, read_object

ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "dynamic", "llama3", "yarn")

# What the reference classes assume where a config.json is silent. Sizes have no default: a guess would load noise.
_FAMILY_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mistral": {"sliding_window": 4096, "num_key_value_heads": 8},
    "qwen2": {"qkv_bias": True, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
}
_GATED_BY_FLAG = frozenset({"qwen2", "qwen3"})
"""Families whose window counts only where ``use_sliding_window`` says so, from ``max_window_layers`` up."""


def read_hf_config(folder: Path) -> ModelConfig:
    """Read a folder's configuration.

    Raises:
        SageLLMError: ``MODEL_NOT_FOUND`` without a ``config.json``; ``INVALID_REQUEST`` naming a value that cannot be;
            ``UNSUPPORTED`` naming one that is not offered.
    """
    path = folder / "config.json"
    config = parse_hf_config(read_object(path), path)
    generation = folder / "generation_config.json"
    if not generation.is_file():
        return config
    fields = Fields(generation, read_object(generation))
    # Chat fine-tunes often name their end-of-turn token only here.
    eos = fields.integers("eos_token_id", config.eos_token_ids)
    return dataclasses.replace(
        config,
        eos_token_ids=tuple(dict.fromkeys((*eos, *config.eos_token_ids))),
        bos_token_id=fields.integer("bos_token_id", config.bos_token_id, minimum=0),
        pad_token_id=fields.integer("pad_token_id", config.pad_token_id, minimum=-1),
    )


def parse_hf_config(values: Mapping[str, Any], source: Path | str) -> ModelConfig:
    """Read the contents of a ``config.json``.

    Args:
        values: The parsed file.
        source: What to call it in messages.

    Raises:
        SageLLMError: As :func:`read_hf_config`.
    """
    model_type = Fields(source, values).text("model_type", "")
    defaults = _FAMILY_DEFAULTS.get(model_type, {})
    # A null counts: mistral's window is 4096 where the key is absent and none where it is null.
    fields = Fields(source, {**defaults, **values})
    _refuse_quantized(fields)
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    head_dim = fields.integer("head_dim", None) or defaults.get("head_dim") or _whole(source, hidden, heads)
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise corrupt(source, f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads})")
    layers = fields.integer("num_hidden_layers", maximum=10_000)
    positions = fields.integer("max_position_embeddings", 2048)
    rope = _rope(fields, head_dim, positions)
    bias = fields.flag("attention_bias", False)
    return ModelConfig(
        architecture=_architecture(fields, model_type),
        model_type=model_type,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size"),
        hidden_act=fields.text("hidden_act", "silu"),
        norm_eps=fields.number("rms_norm_eps", fields.number("layer_norm_eps", 1e-6)),
        rope=rope,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        windows=_windows(fields, model_type, layers),
        max_position_embeddings=_context(rope, positions),
        qkv_bias=bias or fields.flag("qkv_bias", False),
        attention_out_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        qk_norm=model_type == "qwen3",
        bos_token_id=fields.integer("bos_token_id", None, minimum=0),
        eos_token_ids=fields.integers("eos_token_id"),
        pad_token_id=fields.integer("pad_token_id", None, minimum=-1),
        dtype=fields.text("dtype", None) or fields.text("torch_dtype", None),
        raw=MappingProxyType(dict(values)),
    )


def _architecture(fields: Fields, model_type: str) -> str:
    listed = fields.values.get("architectures")
    if isinstance(listed, list) and listed and isinstance(listed[0], str):
        return listed[0]
    if not model_type:
        raise corrupt(fields.source, "names neither architectures nor model_type, so there is no telling what it is")
    return "".join(part.capitalize() for part in model_type.split("_")) + "ForCausalLM"


def _whole(source: Path | str, hidden: int, heads: int) -> int:
    if hidden % heads:
        raise corrupt(source, f"hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads})")
    return hidden // heads


def _refuse_quantized(fields: Fields) -> None:
    quantization = fields.table("quantization_config")
    if quantization is not None:
        method = quantization.text("quant_method", "an unnamed method")
        raise unsupported(
            fields.source,
            f"the weights are quantised with {method!r}, which is not offered; use the GGUF or the unquantised form",
        )


def _windows(fields: Fields, model_type: str, layers: int) -> tuple[int | None, ...]:
    window = fields.integer("sliding_window", None)
    if model_type in _GATED_BY_FLAG and not fields.flag("use_sliding_window", False):
        window = None
    elif model_type == "llama":
        window = None  # the reference class knows no window, whatever the file says
    types = fields.values.get("layer_types")
    if types is None:
        first = fields.integer("max_window_layers", 0, minimum=0) if model_type in _GATED_BY_FLAG else 0
        return tuple(window if layer >= first else None for layer in range(layers))
    if not isinstance(types, list) or len(types) != layers:
        raise corrupt(fields.source, f"layer_types must list one type for each of {layers} layers")
    known = {"full_attention": None, "sliding_attention": window}
    for kind in types:
        if not isinstance(kind, str) or kind not in known:
            raise unsupported(fields.source, f"layer type {kind!r} is not offered; known are {', '.join(known)}")
    return tuple(known[kind] for kind in types)


def _rope(fields: Fields, head_dim: int, positions: int) -> RopeConfig | None:
    if fields.values.get("position_embedding_type") in ("absolute", "relative_key", "relative_key_query"):
        return None
    # transformers 5 keeps everything in rope_parameters; before it, rope_theta stood alone beside rope_scaling.
    table = fields.table("rope_parameters") or fields.table("rope_scaling") or Fields(fields.source, {})
    if any(isinstance(value, Mapping) for value in table.values.values()):
        raise unsupported(table.source, "rotary embeddings that differ by layer type are not offered")
    named = table.text("rope_type", None) or table.text("type", None) or "default"
    if named not in ROPE_KINDS:
        raise unsupported(table.source, f"rope type {named!r} is not offered; known are {', '.join(ROPE_KINDS)}")
    kind: RopeKind = named
    share = table.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * share)
    if share > 1 or rotary_dim < 2 or rotary_dim % 2:
        raise corrupt(
            table.source, f"partial_rotary_factor {share} of head_dim {head_dim} is not an even number of dimensions"
        )
    original = table.integer("original_max_position_embeddings", None)
    original = fields.integer("original_max_position_embeddings", original) or positions
    rope = RopeConfig(
        theta=table.number("rope_theta", fields.number("rope_theta", 10_000.0)),
        rotary_dim=rotary_dim,
        kind=kind,
        factor=_factor(table, kind, positions, original),
        original_max_position_embeddings=None if kind == "default" else original,
        low_freq_factor=table.number("low_freq_factor", 1.0),
        high_freq_factor=table.number("high_freq_factor", 4.0),
        beta_fast=table.number("beta_fast", 32.0),
        beta_slow=table.number("beta_slow", 1.0),
        attention_factor=table.number("attention_factor", None),
        mscale=table.number("mscale", None, positive=False),
        mscale_all_dim=table.number("mscale_all_dim", None, positive=False),
        truncate=table.flag("truncate", True),
    )
    if kind == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise corrupt(table.source, "high_freq_factor must be larger than low_freq_factor")
    return rope


def _factor(table: Fields, kind: RopeKind, positions: int, original: int) -> float:
    if kind == "default":
        return 1.0
    factor = table.number("factor", positions / original) if kind == "yarn" else table.number("factor")
    if factor < 1:
        raise corrupt(table.source, f"factor is {factor}; rope scaling cannot shorten the context")
    return factor


def _context(rope: RopeConfig | None, positions: int) -> int:
    # Qwen's model cards have one add YaRN's factor beside the context the model was trained at.
    if rope is not None and rope.kind == "yarn" and rope.original_max_position_embeddings:
        return max(positions, int(rope.original_max_position_embeddings * rope.factor))
    return positions
