"""What families of decoders say beside the usual: norms, multipliers, layers without positions.

Each function is one family's. Knows nothing of experts.
"""

from __future__ import annotations

import dataclasses
import math

from . import mixture
from .config import ModelConfig, Multipliers, Temperature
from .errors import corrupt, unsupported
from .family import Extras
from .fields import Fields


def qk_norm(fields: Fields, config: ModelConfig) -> Extras:
    """Qwen 3 and OLMo 2: queries and keys are normalised."""
    return {"qk_norm": True}


def gemma(fields: Fields, config: ModelConfig) -> Extras:
    """Gemma: embeddings are multiplied, and norms scale about one."""
    if fields.flag("use_bidirectional_attention", False):
        raise unsupported(fields.source, "attention to later tokens (use_bidirectional_attention) is not offered")
    # Its first releases say gelu and mean the approximation.
    act = "gelu_pytorch_tanh" if config.hidden_act == "gelu" else config.hidden_act
    multipliers = Multipliers(embedding=math.sqrt(config.hidden_size))
    return {"hidden_act": act, "norm_offset": 1.0, "multipliers": multipliers}


def gemma2(fields: Fields, config: ModelConfig) -> Extras:
    """Gemma 2: scores and logits are bounded too."""
    extras = gemma(fields, config)
    extras["multipliers"] = dataclasses.replace(
        extras["multipliers"],
        attention=fields.number("query_pre_attn_scalar") ** -0.5,
        attention_softcap=fields.number("attn_logit_softcapping", None),
        logits_softcap=fields.number("final_logit_softcapping", None),
    )
    return extras


def gemma3(fields: Fields, config: ModelConfig) -> Extras:
    """Gemma 3: norms of heads in place of bounded scores."""
    extras = gemma2(fields, config)
    # The reference class reads the bound and leaves it.
    multipliers = dataclasses.replace(extras["multipliers"], attention_softcap=None)
    return {**extras, "qk_norm": True, "multipliers": multipliers}


def rotated(fields: Fields, layer: int) -> bool:
    """Whether a layer of SmolLM3 or Llama 4 has positions: ``no_rope_layers`` says 1 where it does."""
    flags = fields.values.get("no_rope_layers")
    if not flags:
        return (layer + 1) % fields.integer("no_rope_layer_interval", 4) != 0
    if not isinstance(flags, list) or layer >= len(flags) or flags[layer] not in (0, 1):
        raise corrupt(fields.source, f"no_rope_layers is {flags!r}; it must list 0 or 1 for each layer")
    return bool(flags[layer])


def smollm3(fields: Fields, config: ModelConfig) -> Extras:
    """SmolLM3: some layers have no positions."""
    layers = range(config.num_layers)
    return {"layer_ropes": tuple(config.rope if rotated(fields, layer) else None for layer in layers)}


def _temperature(fields: Fields) -> Temperature | None:
    # The first releases say it by a number, as many as layers from one without positions to the next.
    key = "attn_temperature_tuning"
    numeric = type(fields.values.get(key)) is int
    tuned = fields.integer(key, minimum=0) if numeric else fields.flag(key, True)
    return Temperature(fields.integer("floor_scale", 8192), fields.number("attn_scale", 0.1)) if tuned else None


def llama4(fields: Fields, config: ModelConfig) -> Extras:
    """Llama 4: attention within chunks, and layers without positions that sharpen their queries."""
    assert config.rope is not None, "the family is rotary"
    rope = dataclasses.replace(config.rope, interleaved=True)
    return {
        "rope": rope,
        "layer_ropes": tuple(rope if rotated(fields, layer) else None for layer in range(config.num_layers)),
        "qk_norm": fields.flag("use_qk_norm", True),
        "chunked": True,
        "temperature": _temperature(fields),
        "intermediate_size": fields.integer("intermediate_size_mlp"),
        **mixture.llama4(fields, config),
    }


def granite(fields: Fields, config: ModelConfig) -> Extras:
    """Granite: multipliers throughout."""
    return {
        "multipliers": Multipliers(
            embedding=fields.number("embedding_multiplier", 1.0),
            attention=fields.number("attention_multiplier", 1.0),
            residual=fields.number("residual_multiplier", 1.0),
            logits=1 / fields.number("logits_scaling", 1.0),
        )
    }


def gpt2(fields: Fields, config: ModelConfig) -> Extras:
    """GPT-2: biases everywhere, and weights stored the other way round."""
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if fields.flag(key, False):
            raise unsupported(fields.source, f"{key} is not offered")
    scaled = fields.flag("scale_attn_weights", True)
    biases = dict.fromkeys(("qkv_bias", "attention_out_bias", "mlp_bias"), True)
    return {**biases, "transposed_linears": True, "multipliers": Multipliers(attention=None if scaled else 1.0)}


def gpt_neox(fields: Fields, config: ModelConfig) -> Extras:
    """GPT-NeoX: attention and MLP side by side, each after a norm of its own."""
    parallel = fields.flag("use_parallel_residual", True)
    return {"mlp_bias": True, "parallel": parallel, "parallel_norms": 2, "qkv_by_group": True}


def falcon(fields: Fields, config: ModelConfig) -> Extras:
    """Falcon, of either generation: one pair of keys and values for all heads, or groups of heads."""
    if fields.flag("alibi", False):
        raise unsupported(fields.source, "positions by attention bias (alibi) are not offered; rotary ones are")
    grouped = fields.flag("new_decoder_architecture", False)
    heads = config.num_heads
    kv_heads = 1 if fields.flag("multi_query", True) else heads
    if grouped:
        kv_heads = fields.integer("num_kv_heads", heads)
    if heads % kv_heads:
        raise corrupt(fields.source, f"num_attention_heads ({heads}) is not a multiple of num_kv_heads ({kv_heads})")
    bias = fields.flag("bias", False)
    return {
        "num_kv_heads": kv_heads,
        **dict.fromkeys(("qkv_bias", "attention_out_bias", "mlp_bias"), bias),
        "parallel": fields.flag("parallel_attn", True) or grouped,
        "parallel_norms": fields.integer("num_ln_in_parallel_attn", 2 if grouped else 1, maximum=2),
        "qkv_by_group": True,
    }


def stablelm(fields: Fields, config: ModelConfig) -> Extras:
    """StableLM: attention and MLP side by side, and norms of heads, where the file says so."""
    return {
        "parallel": fields.flag("use_parallel_residual", False),
        "qk_norm": fields.flag("qk_layernorm", False),
    }


def cohere(fields: Fields, config: ModelConfig) -> Extras:
    """Command R: attention and MLP side by side, neighbouring dimensions rotated, logits scaled."""
    assert config.rope is not None, "the family is rotary"
    return {
        "parallel": True,
        "qk_norm": fields.flag("use_qk_norm", False),
        "rope": dataclasses.replace(config.rope, interleaved=True),
        "multipliers": Multipliers(logits=fields.number("logit_scale", 1.0)),
    }


def cohere2(fields: Fields, config: ModelConfig) -> Extras:
    """Command R7B and later: positions only where there is a window."""
    extras = cohere(fields, config)
    ropes = tuple(extras["rope"] if window is not None else None for window in config.windows)
    return {**extras, "layer_ropes": ropes, "qk_norm": False}
