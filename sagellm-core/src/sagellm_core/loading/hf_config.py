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

from sagellm_protocol.errors import SageLLMError

from . import quantized
from .config import ModelConfig
from .errors import corrupt, unsupported
from .families import FAMILIES
from .family import Family
from .fields import Fields, read_object
from .hf_rope import FULL, SLIDING, read_ropes, stated_context
from .outline import read_outline


def read_hf_config(folder: Path) -> ModelConfig:
    """Read a folder's configuration.

    Raises:
        SageLLMError: ``MODEL_NOT_FOUND`` without a ``config.json``; ``INVALID_REQUEST`` naming a value that cannot be;
            ``UNSUPPORTED`` naming one that is not offered.
    """
    path = folder / "config.json"
    config = parse_hf_config(quantized.with_settings(folder, read_object(path)), path)
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
    family = FAMILIES.get(model_type, Family())
    fields = family.read(values, source)
    scheme = quantized.scheme_of(values, source, native=family.quantizations)
    architecture = _architecture(fields, family, model_type)
    try:
        config = _read(fields, family, architecture, model_type)
    except SageLLMError as error:
        if model_type in FAMILIES:
            raise
        # Whoever runs it may read the rest by itself, and whoever cannot says this.
        config = read_outline(fields, architecture, model_type, error.message)
    return dataclasses.replace(
        config,
        quantization=scheme.method if scheme is not None else None,
        raw=MappingProxyType(dict(values)),
    )


def _read(fields: Fields, family: Family, architecture: str, model_type: str) -> ModelConfig:
    source = fields.source
    hidden = fields.integer("hidden_size")
    heads = fields.integer("num_attention_heads")
    head_dim = fields.integer("head_dim", None) or family.defaults.get("head_dim") or _whole(source, hidden, heads)
    kv_heads = fields.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise corrupt(source, f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads})")
    layers = fields.integer("num_hidden_layers", maximum=10_000)
    positions = fields.integer("max_position_embeddings", 2048)
    types = _layer_types(fields, family, layers)
    window = family.window(fields) if SLIDING in types else None
    ropes = (
        read_ropes(fields, head_dim, positions, sorted(set(types))) if family.rotary else {FULL: None, SLIDING: None}
    )
    rope = ropes[FULL]
    bias = fields.flag("attention_bias", False)
    config = ModelConfig(
        architecture=architecture,
        model_type=model_type,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=_inner(fields, family, hidden),
        hidden_act=fields.text("hidden_act", "silu"),
        norm_eps=fields.number("rms_norm_eps", fields.number("layer_norm_eps", 1e-6)),
        rope=rope,
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        windows=tuple(window if kind == SLIDING else None for kind in types),
        max_position_embeddings=stated_context(rope, positions),
        qkv_bias=bias or fields.flag("qkv_bias", False),
        attention_out_bias=bias,
        mlp_bias=fields.flag("mlp_bias", False),
        layer_ropes=() if ropes[FULL] == ropes[SLIDING] else tuple(ropes[kind] for kind in types),
        bos_token_id=fields.integer("bos_token_id", None, minimum=0),
        eos_token_ids=fields.integers("eos_token_id"),
        pad_token_id=fields.integer("pad_token_id", None, minimum=-1),
        dtype=fields.text("dtype", None) or fields.text("torch_dtype", None),
    )
    return dataclasses.replace(config, **family.extras(fields, config))


def _architecture(fields: Fields, family: Family, model_type: str) -> str:
    listed = fields.values.get("architectures")
    if isinstance(listed, list) and listed and isinstance(listed[0], str):
        return listed[0]
    if family.architecture:
        return family.architecture
    if not model_type:
        raise corrupt(fields.source, "names neither architectures nor model_type, so there is no telling what it is")
    return "".join(part.capitalize() for part in model_type.split("_")) + "ForCausalLM"


def _whole(source: Path | str, hidden: int, heads: int) -> int:
    if hidden % heads:
        raise corrupt(source, f"hidden_size ({hidden}) is not a multiple of num_attention_heads ({heads})")
    return hidden // heads


def _inner(fields: Fields, family: Family, hidden: int) -> int:
    if family.inner is None:
        return fields.integer("intermediate_size")
    return fields.integer("intermediate_size", family.inner * hidden)


def _layer_types(fields: Fields, family: Family, layers: int) -> tuple[str, ...]:
    types = fields.values.get("layer_types")
    if types is None:
        return tuple(SLIDING if family.slides(fields, layer) else FULL for layer in range(layers))
    if not isinstance(types, list) or len(types) != layers:
        raise corrupt(fields.source, f"layer_types must list one type for each of {layers} layers")
    for kind in types:
        if kind not in (FULL, family.local):
            raise unsupported(fields.source, f"layer type {kind!r} is not offered; known are {FULL}, {family.local}")
    return tuple(SLIDING if kind == family.local else FULL for kind in types)
