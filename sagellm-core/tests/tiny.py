"""Tiny random models of every family and variant, made and saved by the reference implementation.

Every parameter is random, norms and biases too: one that is left at its initial value hides a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCAB = 131
CONTEXT = 96


def _sizes(**overrides: Any) -> dict[str, Any]:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.15,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
    }
    return {**sizes, **overrides}


def _rope(**scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10_000.0, **scaling}}


@dataclass(frozen=True)
class Recipe:
    """How one tiny model is made.

    Attributes:
        architecture: Class of the reference implementation.
        config: Class of its configuration.
        sizes: What the configuration is given.
    """

    architecture: str
    config: str
    sizes: Mapping[str, Any]

    def of(self, **sizes: Any) -> Recipe:
        """The same with other sizes."""
        return Recipe(self.architecture, self.config, {**self.sizes, **sizes})

    def __call__(self) -> PreTrainedModel:
        """The model, as it is initialised."""
        sizes = {key: value for key, value in self.sizes.items() if value is not _ABSENT}
        model: PreTrainedModel = getattr(transformers, self.architecture)(getattr(transformers, self.config)(**sizes))
        return model


def _with_images(architecture: str, config: str, text: Mapping[str, Any], images: Mapping[str, Any]) -> Recipe:
    """A model that reads images beside text."""
    described = {"text_config": dict(text), "vision_config": dict(images), "attn_implementation": "eager"}
    return Recipe(architecture, config, described)


def _of(architecture: str, config: str, **fixed: Any) -> Callable[..., Recipe]:
    """Recipes of one architecture, given what differs from the usual sizes."""
    return lambda **overrides: Recipe(architecture, config, _sizes(**{**fixed, **overrides}))


_ABSENT = object()
"""In place of a size that a configuration does not know."""
_WITHOUT = dict.fromkeys(("num_key_value_heads", "intermediate_size"), _ABSENT)

_cohere = _of("CohereForCausalLM", "CohereConfig", logit_scale=0.4, tie_word_embeddings=True)
_cohere2 = _of("Cohere2ForCausalLM", "Cohere2Config", logit_scale=0.4, sliding_window=9, tie_word_embeddings=True)
_MIXTURE = {"moe_intermediate_size": 24, "num_experts_per_tok": 3}
_LATENT = {
    "num_key_value_heads": 6,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "first_k_dense_replace": 1,
    **_MIXTURE,
}
_deepseek_v2 = _of("DeepseekV2ForCausalLM", "DeepseekV2Config", **_LATENT, q_lora_rank=None, n_shared_experts=2)
_deepseek_v3 = _of("DeepseekV3ForCausalLM", "DeepseekV3Config", **_LATENT, q_lora_rank=20, n_group=4, topk_group=2)
_falcon = _of("FalconForCausalLM", "FalconConfig", **_WITHOUT, tie_word_embeddings=True)
_gemma = _of("GemmaForCausalLM", "GemmaConfig", head_dim=16, tie_word_embeddings=True)
_gemma2 = _of(
    "Gemma2ForCausalLM",
    "Gemma2Config",
    head_dim=16,
    query_pre_attn_scalar=16,
    sliding_window=9,
    tie_word_embeddings=True,
)
_gemma3 = _of(
    "Gemma3ForCausalLM",
    "Gemma3TextConfig",
    head_dim=16,
    query_pre_attn_scalar=16,
    num_hidden_layers=7,
    sliding_window=9,
    tie_word_embeddings=True,
)
_OF_GPT = {
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_positions": CONTEXT,
    "tie_word_embeddings": True,
    **dict.fromkeys(
        (*_WITHOUT, "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"), _ABSENT
    ),
}
_gpt2 = _of("GPT2LMHeadModel", "GPT2Config", **_OF_GPT)
_gpt_neox = _of("GPTNeoXForCausalLM", "GPTNeoXConfig", num_key_value_heads=_ABSENT, rotary_pct=0.25)
_gpt_oss = _of(
    "GptOssForCausalLM",
    "GptOssConfig",
    head_dim=16,
    hidden_size=64,
    intermediate_size=96,
    num_local_experts=5,
    num_experts_per_tok=2,
    sliding_window=9,
    rope_parameters={
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 24,
        "truncate": False,
    },
)
_granite = _of(
    "GraniteForCausalLM",
    "GraniteConfig",
    embedding_multiplier=3.0,
    attention_multiplier=0.2,
    residual_multiplier=0.4,
    logits_scaling=2.5,
)
_llama = _of("LlamaForCausalLM", "LlamaConfig")
_llama4 = _of(
    "Llama4ForCausalLM",
    "Llama4TextConfig",
    head_dim=16,
    intermediate_size=24,
    intermediate_size_mlp=80,
    num_hidden_layers=4,
    num_local_experts=5,
    interleave_moe_layer_step=2,
    attention_chunk_size=8,
    floor_scale=10,
    attn_scale=0.4,
)
_mistral = _of("MistralForCausalLM", "MistralConfig")
_mixtral = _of("MixtralForCausalLM", "MixtralConfig", num_local_experts=5)
_olmo2 = _of("Olmo2ForCausalLM", "Olmo2Config")
_phi3 = _of("Phi3ForCausalLM", "Phi3Config", pad_token_id=0, original_max_position_embeddings=24)
_qwen2 = _of("Qwen2ForCausalLM", "Qwen2Config")
_qwen2_moe = _of("Qwen2MoeForCausalLM", "Qwen2MoeConfig", **_MIXTURE, num_experts=7, shared_expert_intermediate_size=40)
_qwen3_moe = _of("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **_MIXTURE, num_experts=7, head_dim=16)
_qwen3 = _of("Qwen3ForCausalLM", "Qwen3Config")
_smollm3 = _of("SmolLM3ForCausalLM", "SmolLM3Config", num_hidden_layers=4, tie_word_embeddings=True)
_stablelm = _of("StableLmForCausalLM", "StableLmConfig", hidden_size=96, partial_rotary_factor=0.25)

_LLAMA3 = _rope(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=24
)
_YARN = _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=24)

RECIPES: Mapping[str, Recipe] = {
    "llama": _llama(),
    "llama, tied": _llama(tie_word_embeddings=True),
    "llama, one key/value head": _llama(num_key_value_heads=1),
    "llama, as many key/value heads as queries": _llama(num_key_value_heads=6),
    "llama, heads wider than the hidden size": _llama(head_dim=16),
    "llama, biases": _llama(attention_bias=True, mlp_bias=True),
    "llama, linear rope": _llama(**_rope(rope_type="linear", factor=4.0)),
    "llama, dynamic rope": _llama(**_rope(rope_type="dynamic", factor=4.0)),
    "llama, llama3 rope": _llama(**_LLAMA3),
    "llama, yarn rope": _llama(**_YARN),
    "llama, yarn rope with magnitudes": _llama(
        **_rope(
            rope_type="yarn",
            factor=4.0,
            original_max_position_embeddings=24,
            mscale=1.2,
            mscale_all_dim=0.7,
            beta_fast=8,
        )
    ),
    "llama, yarn rope untruncated": _llama(
        **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=24, truncate=False, attention_factor=1.3)
    ),
    "cohere": _cohere(),
    "cohere, norms of heads, biases": _cohere(use_qk_norm=True, attention_bias=True),
    "cohere2": _cohere2(num_hidden_layers=4),
    "deepseek_v2": _deepseek_v2(),
    "deepseek_v2, groups, squeezed queries, yarn rope": _deepseek_v2(
        q_lora_rank=20,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.7,
        attention_bias=True,
        **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=24, mscale=0.7, mscale_all_dim=1.3),
    ),
    "deepseek_v3": _deepseek_v3(),
    "deepseek_v3, yarn rope": _deepseek_v3(
        q_lora_rank=None,
        n_group=2,
        topk_group=1,
        norm_topk_prob=False,
        rope_interleave=False,
        **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=24, mscale=1.0, mscale_all_dim=1.0),
    ),
    "falcon, one key/value head": _falcon(),
    "falcon, groups and two norms": _falcon(new_decoder_architecture=True, num_kv_heads=2, bias=True),
    "falcon, groups and one norm": _falcon(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1),
    "falcon, one after the other": _falcon(multi_query=False, parallel_attn=False, ffn_hidden_size=80),
    "gemma": _gemma(),
    "gemma, biases": _gemma(head_dim=8, attention_bias=True),
    "gemma2": _gemma2(),
    "gemma2, unbounded": _gemma2(attn_logit_softcapping=None, final_logit_softcapping=None, query_pre_attn_scalar=40),
    "gemma3": _gemma3(),
    "gemma3, linear rope, bounded": _gemma3(
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 8_000.0},
        },
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0,
    ),
    "gpt2": _gpt2(),
    "gpt2, own width, unscaled": _gpt2(n_inner=80, scale_attn_weights=False, activation_function="gelu"),
    "gpt_neox": _gpt_neox(),
    "gpt_neox, one after the other": _gpt_neox(use_parallel_residual=False, attention_bias=False, rotary_pct=1.0),
    "gpt_oss": _gpt_oss(),
    "gpt_oss, no window, narrow gates": _gpt_oss(
        layer_types=["full_attention"] * 3, swiglu_alpha=1.1, swiglu_limit=1.5
    ),
    "granite": _granite(),
    "granite, tied, biases": _granite(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama4": _llama4(),
    "llama4, all experts, two a token, no norms": _llama4(
        interleave_moe_layer_step=1,
        num_experts_per_tok=2,
        use_qk_norm=False,
        attn_temperature_tuning=False,
        no_rope_layers=[1, 0, 1, 1],
        attention_chunk_size=11,
        attention_bias=True,
        tie_word_embeddings=True,
        **_LLAMA3,
    ),
    "llama4, of images": _with_images(
        "Llama4ForConditionalGeneration",
        "Llama4Config",
        _llama4().sizes,
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 28,
            "patch_size": 14,
            **dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 32),
        },
    ),
    "mistral, window": _mistral(sliding_window=7),
    "mistral, no window": _mistral(sliding_window=None, head_dim=16),
    "mixtral": _mixtral(),
    "mixtral, window": _mixtral(sliding_window=9, num_experts_per_tok=3, head_dim=16),
    "olmo2": _olmo2(),
    "phi3": _phi3(),
    "phi3, part rotated, window": _phi3(partial_rotary_factor=0.5, sliding_window=9, tie_word_embeddings=True),
    "phi3, long context": _phi3(
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0, 1.1, 1.25, 1.5],
            "long_factor": [1.0, 2.5, 4.0, 6.0],
            "attention_factor": 1.19,
        },
    ),
    "qwen2": _qwen2(),
    "qwen2, tied, yarn rope": _qwen2(tie_word_embeddings=True, **_YARN),
    "qwen2, window on upper layers": _qwen2(use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen2_moe": _qwen2_moe(),
    "qwen2_moe, some layers, window": _qwen2_moe(
        norm_topk_prob=True, decoder_sparse_step=2, use_sliding_window=True, sliding_window=9, max_window_layers=3
    ),
    "qwen3_moe": _qwen3_moe(norm_topk_prob=True),
    "qwen3_moe, some layers": _qwen3_moe(mlp_only_layers=[1], tie_word_embeddings=True),
    "qwen3": _qwen3(head_dim=16),
    "qwen3, tied, biases": _qwen3(head_dim=8, tie_word_embeddings=True, attention_bias=True),
    "qwen3, window on the last layer": _qwen3(
        head_dim=16, use_sliding_window=True, sliding_window=9, max_window_layers=2
    ),
    "smollm3": _smollm3(),
    "smollm3, chosen layers": _smollm3(no_rope_layers=[0, 1, 1, 0], use_sliding_window=True, sliding_window=9),
    "stablelm": _stablelm(),
    "stablelm, parallel, norms of heads": _stablelm(use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=True),
}


FOREIGN: Mapping[str, Recipe] = {
    "exaone4": _of("Exaone4ForCausalLM", "Exaone4Config", num_hidden_layers=4)(
        sliding_window=9, sliding_window_pattern=4
    ),
    "glm4": _of("Glm4ForCausalLM", "Glm4Config", head_dim=16, pad_token_id=0)(attention_bias=True),
    "gpt_bigcode": _of("GPTBigCodeForCausalLM", "GPTBigCodeConfig", **_OF_GPT)(),
    "granite_swa": _of("GraniteSWAForCausalLM", "GraniteSWAConfig")(
        sliding_window=9, layer_types=["sliding_attention", "full_attention", "sliding_attention"], logits_scaling=2.5
    ),
    "nemotron": _of("NemotronForCausalLM", "NemotronConfig")(partial_rotary_factor=0.5),
    "olmo": _of("OlmoForCausalLM", "OlmoConfig")(clip_qkv=2.0, tie_word_embeddings=True),
    "olmoe": _of("OlmoeForCausalLM", "OlmoeConfig")(num_experts=5, num_experts_per_tok=2),
    "opt": _of("OPTForCausalLM", "OPTConfig", **_WITHOUT)(ffn_dim=80, word_embed_proj_dim=48),
    "phi": _of("PhiForCausalLM", "PhiConfig")(partial_rotary_factor=0.5, qk_layernorm=True),
    "starcoder2": _of("Starcoder2ForCausalLM", "Starcoder2Config")(sliding_window=9, use_bias=True),
}
"""Architectures that run through the reference implementation's own code."""

LONG_CONTEXT = "phi3, long context"
"""Turned otherwise beyond its original context of 24 tokens than within."""
USUAL: Mapping[str, str] = {recipe.architecture: name for name, recipe in reversed(RECIPES.items())}
"""The first recipe of each architecture."""


def make(name: str) -> PreTrainedModel:
    """The model of a recipe, in float32."""
    return made({**RECIPES, **FOREIGN}[name])


def made(recipe: Recipe) -> PreTrainedModel:
    """The model of a recipe that need not be among :data:`RECIPES`."""
    torch.manual_seed(0)
    model = recipe().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(".weight") and (parameter.ndim == 1 or "norm" in parameter_name):
                parameter.uniform_(0.5, 1.5)
            elif parameter_name.endswith(("bias", "sinks")):
                parameter.normal_(0, 0.3)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("correction_bias"):
                buffer.uniform_(0, 0.5)
    return model


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Save a model as its own library would."""
    model.save_pretrained(folder)
    return folder
