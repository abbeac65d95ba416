"""What each family's ``config.json`` says in words of its own, and what it leaves unsaid: a table by ``model_type``.

Defaults are what the reference classes assume where a file is silent. Sizes have none: a guess would load noise. Knows
nothing of GGUF, nor of how a model is run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import encoders, mixture
from .config import ModelConfig, Multipliers, Temperature
from .errors import corrupt, unsupported
from .fields import Fields
from .hf_rope import SLIDING

Extras = dict[str, Any]
"""Fields of a :class:`ModelConfig` to replace."""


def _listed_window(fields: Fields) -> int | None:
    return fields.integer("sliding_window", None)


def _no_window(fields: Fields) -> int | None:
    return None  # the reference class knows none, whatever the file says


def _window_by_flag(fields: Fields) -> int | None:
    return fields.integer("sliding_window", None) if fields.flag("use_sliding_window", False) else None


@dataclass(frozen=True)
class Family:
    """How one family's configuration is read.

    Attributes:
        architecture: Class that loads it where the file names none.
        defaults: What counts where a key is absent. A null counts: it is not absence.
        part: Where the file of a model that reads images too describes the one that reads text.
        renamed: The family's key for what is usually called otherwise, and the usual one.
        inner: Width of the MLP in multiples of ``hidden_size``, where the file gives none.
        rotary: It has a rotary embedding.
        window: Tokens back that layers with a window see.
        local: What the file calls layers with a window.
        slides: Whether the layer of a number has a window, where the file lists no ``layer_types``.
        extras: What else the file says, beside the configuration read so far.
        quantizations: Methods that its weights may have been quantised with.
    """

    architecture: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    part: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    inner: int | None = None
    rotary: bool = True
    window: Callable[[Fields], int | None] = _listed_window
    local: str = SLIDING
    slides: Callable[[Fields, int], bool] = lambda fields, layer: True
    extras: Callable[[Fields, ModelConfig], Extras] = lambda fields, config: {}
    quantizations: frozenset[str] = frozenset()

    def read(self, values: Mapping[str, Any], source: Any) -> Fields:
        """The file's values by the usual names, defaults filled in."""
        if self.part is not None:
            inner = Fields(source, values).table(self.part)
            described = {} if inner is None else inner.values
            values = {**values, **described, "architectures": values.get("architectures")}
        usual = {self.renamed[key]: value for key, value in values.items() if key in self.renamed and value is not None}
        return Fields(source, {**self.defaults, **values, **usual})


def _from_max_window_layers(fields: Fields, layer: int) -> bool:
    return layer >= fields.integer("max_window_layers", 0, minimum=0)


def _every_other_below_max_window_layers(fields: Fields, layer: int) -> bool:
    return layer % 2 == 0 and layer < fields.integer("max_window_layers", 0, minimum=0)


def _all_but_every(key: str, default: int) -> Callable[[Fields, int], bool]:
    return lambda fields, layer: (layer + 1) % fields.integer(key, default) != 0


def _qk_norm(fields: Fields, config: ModelConfig) -> Extras:
    return {"qk_norm": True}


def _gemma(fields: Fields, config: ModelConfig) -> Extras:
    if fields.flag("use_bidirectional_attention", False):
        raise unsupported(fields.source, "attention to later tokens (use_bidirectional_attention) is not offered")
    # Its first releases say gelu and mean the approximation.
    act = "gelu_pytorch_tanh" if config.hidden_act == "gelu" else config.hidden_act
    multipliers = Multipliers(embedding=math.sqrt(config.hidden_size))
    return {"hidden_act": act, "norm_offset": 1.0, "multipliers": multipliers}


def _gemma2(fields: Fields, config: ModelConfig) -> Extras:
    extras = _gemma(fields, config)
    extras["multipliers"] = dataclasses.replace(
        extras["multipliers"],
        attention=fields.number("query_pre_attn_scalar") ** -0.5,
        attention_softcap=fields.number("attn_logit_softcapping", None),
        logits_softcap=fields.number("final_logit_softcapping", None),
    )
    return extras


def _gemma3(fields: Fields, config: ModelConfig) -> Extras:
    extras = _gemma2(fields, config)
    # Norms of heads took the place of bounded scores: the reference class reads the bound and leaves it.
    multipliers = dataclasses.replace(extras["multipliers"], attention_softcap=None)
    return {**extras, "qk_norm": True, "multipliers": multipliers}


def _rotated(fields: Fields, layer: int) -> bool:
    """Whether a layer of SmolLM3 or Llama 4 has positions: ``no_rope_layers`` says 1 where it does."""
    flags = fields.values.get("no_rope_layers")
    if not flags:
        return (layer + 1) % fields.integer("no_rope_layer_interval", 4) != 0
    if not isinstance(flags, list) or layer >= len(flags) or flags[layer] not in (0, 1):
        raise corrupt(fields.source, f"no_rope_layers is {flags!r}; it must list 0 or 1 for each layer")
    return bool(flags[layer])


def _smollm3(fields: Fields, config: ModelConfig) -> Extras:
    layers = range(config.num_layers)
    return {"layer_ropes": tuple(config.rope if _rotated(fields, layer) else None for layer in layers)}


def _temperature(fields: Fields) -> Temperature | None:
    # The first releases say it by a number, as many as layers from one without positions to the next.
    key = "attn_temperature_tuning"
    numeric = type(fields.values.get(key)) is int
    tuned = fields.integer(key, minimum=0) if numeric else fields.flag(key, True)
    return Temperature(fields.integer("floor_scale", 8192), fields.number("attn_scale", 0.1)) if tuned else None


def _llama4(fields: Fields, config: ModelConfig) -> Extras:
    assert config.rope is not None, "the family is rotary"
    rope = dataclasses.replace(config.rope, interleaved=True)
    return {
        "rope": rope,
        "layer_ropes": tuple(rope if _rotated(fields, layer) else None for layer in range(config.num_layers)),
        "qk_norm": fields.flag("use_qk_norm", True),
        "chunked": True,
        "temperature": _temperature(fields),
        "intermediate_size": fields.integer("intermediate_size_mlp"),
        **mixture.llama4(fields, config),
    }


def _granite(fields: Fields, config: ModelConfig) -> Extras:
    return {
        "multipliers": Multipliers(
            embedding=fields.number("embedding_multiplier", 1.0),
            attention=fields.number("attention_multiplier", 1.0),
            residual=fields.number("residual_multiplier", 1.0),
            logits=1 / fields.number("logits_scaling", 1.0),
        )
    }


def _gpt2(fields: Fields, config: ModelConfig) -> Extras:
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if fields.flag(key, False):
            raise unsupported(fields.source, f"{key} is not offered")
    scaled = fields.flag("scale_attn_weights", True)
    biases = dict.fromkeys(("qkv_bias", "attention_out_bias", "mlp_bias"), True)
    return {**biases, "transposed_linears": True, "multipliers": Multipliers(attention=None if scaled else 1.0)}


def _gpt_neox(fields: Fields, config: ModelConfig) -> Extras:
    parallel = fields.flag("use_parallel_residual", True)
    return {"mlp_bias": True, "parallel": parallel, "parallel_norms": 2, "qkv_by_group": True}


def _falcon(fields: Fields, config: ModelConfig) -> Extras:
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


def _stablelm(fields: Fields, config: ModelConfig) -> Extras:
    return {
        "parallel": fields.flag("use_parallel_residual", False),
        "qk_norm": fields.flag("qk_layernorm", False),
    }


def _cohere(fields: Fields, config: ModelConfig) -> Extras:
    assert config.rope is not None, "the family is rotary"
    return {
        "parallel": True,
        "qk_norm": fields.flag("use_qk_norm", False),
        "rope": dataclasses.replace(config.rope, interleaved=True),
        "multipliers": Multipliers(logits=fields.number("logit_scale", 1.0)),
    }


def _cohere2(fields: Fields, config: ModelConfig) -> Extras:
    """Positions only where there is a window."""
    extras = _cohere(fields, config)
    ropes = tuple(extras["rope"] if window is not None else None for window in config.windows)
    return {**extras, "layer_ropes": ropes, "qk_norm": False}


_ENCODER = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0, "max_position_embeddings": 512}
_DEEPSEEK = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512, "head_dim": 64}
_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_QWEN_MOE = {"sliding_window": 4096, "max_window_layers": 28}
_GEMMA = {"head_dim": 256, "tie_word_embeddings": True}
_GEMMA2 = {**_GEMMA, "hidden_act": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096}
_COHERE = {"tie_word_embeddings": True, "logit_scale": 0.0625, "layer_norm_eps": 1e-5, "rope_theta": 500_000.0}

_LLAMA4 = Family(
    architecture="Llama4ForCausalLM",
    defaults={
        "head_dim": 128,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0,
        "attention_chunk_size": 8192,
        "num_experts_per_tok": 1,
        "num_local_experts": 16,
    },
    window=lambda fields: fields.integer("attention_chunk_size", None),
    local="chunked_attention",
    slides=_rotated,
    extras=_llama4,
)

FAMILIES: Mapping[str, Family] = {
    "bert": Family(architecture="BertModel", defaults=_ENCODER, rotary=False, window=_no_window, extras=encoders.bert),
    "cohere": Family(defaults=_COHERE, window=_no_window, extras=_cohere),
    "cohere2": Family(
        defaults={**_COHERE, "sliding_window": 4096, "rope_theta": 10_000.0},
        slides=_all_but_every("sliding_window_pattern", 4),
        extras=_cohere2,
    ),
    "deepseek_v2": Family(
        architecture="DeepseekV2ForCausalLM",
        defaults={**_DEEPSEEK, "q_lora_rank": 1536, "n_shared_experts": 2},
        # What is rotated of a head; its own size follows from two others.
        renamed={"qk_rope_head_dim": "head_dim"},
        window=_no_window,
        extras=mixture.deepseek,
    ),
    "deepseek_v3": Family(
        architecture="DeepseekV3ForCausalLM",
        defaults={
            **_DEEPSEEK,
            "q_lora_rank": 1536,
            "n_shared_experts": 1,
            "first_k_dense_replace": 3,
            "num_experts_per_tok": 8,
            "n_group": 8,
            "topk_group": 4,
        },
        renamed={"qk_rope_head_dim": "head_dim"},
        window=_no_window,
        extras=mixture.deepseek,
    ),
    "falcon": Family(
        defaults={"hidden_act": "gelu", "tie_word_embeddings": True, "layer_norm_eps": 1e-5},
        renamed={
            "activation": "hidden_act",
            "layer_norm_epsilon": "layer_norm_eps",
            "n_embed": "hidden_size",
            "n_head": "num_attention_heads",
            "n_layer": "num_hidden_layers",
            "ffn_hidden_size": "intermediate_size",
        },
        inner=4,
        window=_no_window,
        extras=_falcon,
    ),
    "gemma": Family(defaults={**_GEMMA, "hidden_act": "gelu_pytorch_tanh"}, window=_no_window, extras=_gemma),
    "gemma2": Family(
        defaults={**_GEMMA2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        renamed={"hidden_activation": "hidden_act"},
        slides=_all_but_every("sliding_window_pattern", 2),
        extras=_gemma2,
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        defaults={**_GEMMA2, "max_position_embeddings": 131_072, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        renamed={"hidden_activation": "hidden_act"},
        slides=_all_but_every("sliding_window_pattern", 6),
        extras=_gemma3,
    ),
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        defaults={"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "tie_word_embeddings": True},
        renamed={
            "n_embd": "hidden_size",
            "n_head": "num_attention_heads",
            "n_layer": "num_hidden_layers",
            "n_inner": "intermediate_size",
            "n_positions": "max_position_embeddings",
            "activation_function": "hidden_act",
            "layer_norm_epsilon": "layer_norm_eps",
        },
        inner=4,
        rotary=False,
        window=_no_window,
        extras=_gpt2,
    ),
    "gpt_neox": Family(
        architecture="GPTNeoXForCausalLM",
        defaults={
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "attention_bias": True,
            "partial_rotary_factor": 0.25,
        },
        renamed={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
        window=_no_window,
        extras=_gpt_neox,
    ),
    "gpt_oss": Family(
        architecture="GptOssForCausalLM",
        defaults={
            "head_dim": 64,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "attention_bias": True,
            "sliding_window": 128,
            "max_position_embeddings": 131_072,
            "rope_theta": 150_000.0,
            "rope_scaling": _GPT_OSS_ROPE,
            "num_experts_per_tok": 4,
        },
        slides=lambda fields, layer: layer % 2 == 0,
        extras=mixture.gpt_oss,
        quantizations=frozenset({"mxfp4"}),
    ),
    "granite": Family(window=_no_window, extras=_granite),
    "llama": Family(window=_no_window),
    "llama4": dataclasses.replace(_LLAMA4, architecture="Llama4ForConditionalGeneration", part="text_config"),
    "llama4_text": _LLAMA4,
    "mistral": Family(defaults={"sliding_window": 4096, "num_key_value_heads": 8}),
    "mixtral": Family(
        defaults={
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131_072,
            "rope_theta": 1e6,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        extras=mixture.mixtral,
    ),
    "olmo2": Family(defaults={"rms_norm_eps": 1e-5}, window=_no_window, extras=_qk_norm),
    "phi3": Family(defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}),
    "qwen2": Family(
        defaults={"qkv_bias": True, "sliding_window": 4096, "max_window_layers": 28},
        window=_window_by_flag,
        slides=_from_max_window_layers,
    ),
    "qwen2_moe": Family(
        architecture="Qwen2MoeForCausalLM",
        defaults={
            **_QWEN_MOE,
            "qkv_bias": True,
            "num_experts_per_tok": 4,
            "num_experts": 60,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
        window=_window_by_flag,
        slides=_every_other_below_max_window_layers,
        extras=mixture.qwen_moe,
    ),
    "qwen3": Family(
        defaults={"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
        window=_window_by_flag,
        slides=_from_max_window_layers,
        extras=_qk_norm,
    ),
    "roberta": Family(
        architecture="RobertaModel",
        defaults={**_ENCODER, "pad_token_id": 1},
        rotary=False,
        window=_no_window,
        extras=encoders.roberta,
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM",
        defaults={
            **_QWEN_MOE,
            "num_key_value_heads": 4,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
        },
        window=_window_by_flag,
        extras=mixture.qwen_moe,
    ),
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM",
        defaults={
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32_768,
            "rope_theta": 2e6,
        },
        window=_window_by_flag,
        slides=lambda fields, layer: not _rotated(fields, layer),
        extras=_smollm3,
    ),
    "stablelm": Family(
        architecture="StableLmForCausalLM",
        defaults={"layer_norm_eps": 1e-5, "num_key_value_heads": 32, "partial_rotary_factor": 0.25},
        renamed={"use_qkv_bias": "qkv_bias"},
        window=_no_window,
        extras=_stablelm,
    ),
    "xlm-roberta": Family(
        architecture="XLMRobertaModel",
        defaults={**_ENCODER, "pad_token_id": 1},
        rotary=False,
        window=_no_window,
        extras=encoders.roberta,
    ),
}
