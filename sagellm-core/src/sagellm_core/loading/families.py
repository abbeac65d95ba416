"""What each family's ``config.json`` says in words of its own, and what it leaves unsaid: a table by ``model_type``.

Defaults are what the reference classes assume where a file is silent. Sizes have none: a guess would load noise. Knows
nothing of GGUF, nor of how a model is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from . import decoders, encoders, mixture
from .family import Family
from .fields import Fields


def _no_window(fields: Fields) -> int | None:
    return None  # the reference class knows none, whatever the file says


def _window_by_flag(fields: Fields) -> int | None:
    return fields.integer("sliding_window", None) if fields.flag("use_sliding_window", False) else None


def _from_max_window_layers(fields: Fields, layer: int) -> bool:
    return layer >= fields.integer("max_window_layers", 0, minimum=0)


def _every_other_below_max_window_layers(fields: Fields, layer: int) -> bool:
    return layer % 2 == 0 and layer < fields.integer("max_window_layers", 0, minimum=0)


def _all_but_every(key: str, default: int) -> Callable[[Fields, int], bool]:
    return lambda fields, layer: (layer + 1) % fields.integer(key, default) != 0


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
    slides=decoders.rotated,
    extras=decoders.llama4,
)

FAMILIES: Mapping[str, Family] = {
    "bert": Family(architecture="BertModel", defaults=_ENCODER, rotary=False, window=_no_window, extras=encoders.bert),
    "cohere": Family(defaults=_COHERE, window=_no_window, extras=decoders.cohere),
    "cohere2": Family(
        defaults={**_COHERE, "sliding_window": 4096, "rope_theta": 10_000.0},
        slides=_all_but_every("sliding_window_pattern", 4),
        extras=decoders.cohere2,
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
        extras=decoders.falcon,
    ),
    "gemma": Family(defaults={**_GEMMA, "hidden_act": "gelu_pytorch_tanh"}, window=_no_window, extras=decoders.gemma),
    "gemma2": Family(
        defaults={**_GEMMA2, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        renamed={"hidden_activation": "hidden_act"},
        slides=_all_but_every("sliding_window_pattern", 2),
        extras=decoders.gemma2,
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        defaults={**_GEMMA2, "max_position_embeddings": 131_072, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        renamed={"hidden_activation": "hidden_act"},
        slides=_all_but_every("sliding_window_pattern", 6),
        extras=decoders.gemma3,
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
        extras=decoders.gpt2,
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
        extras=decoders.gpt_neox,
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
    "granite": Family(window=_no_window, extras=decoders.granite),
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
    "olmo2": Family(defaults={"rms_norm_eps": 1e-5}, window=_no_window, extras=decoders.qk_norm),
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
        extras=decoders.qk_norm,
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
        slides=lambda fields, layer: not decoders.rotated(fields, layer),
        extras=decoders.smollm3,
    ),
    "stablelm": Family(
        architecture="StableLmForCausalLM",
        defaults={"layer_norm_eps": 1e-5, "num_key_value_heads": 32, "partial_rotary_factor": 0.25},
        renamed={"use_qkv_bias": "qkv_bias"},
        window=_no_window,
        extras=decoders.stablelm,
    ),
    "xlm-roberta": Family(
        architecture="XLMRobertaModel",
        defaults={**_ENCODER, "pad_token_id": 1},
        rotary=False,
        window=_no_window,
        extras=encoders.roberta,
    ),
}
