"""Tiny random models of every family and variant, made and saved by the reference implementation.

Every parameter is random, norms and biases too: one that is left at its initial value hides a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 131
CONTEXT = 96

Recipe = Callable[[], PreTrainedModel]


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


def _llama(**overrides: Any) -> Recipe:
    return lambda: LlamaForCausalLM(LlamaConfig(**_sizes(**overrides)))


def _mistral(**overrides: Any) -> Recipe:
    return lambda: MistralForCausalLM(MistralConfig(**_sizes(**overrides)))


def _qwen2(**overrides: Any) -> Recipe:
    return lambda: Qwen2ForCausalLM(Qwen2Config(**_sizes(**overrides)))


def _qwen3(**overrides: Any) -> Recipe:
    return lambda: Qwen3ForCausalLM(Qwen3Config(**_sizes(**overrides)))


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
    "mistral, window": _mistral(sliding_window=7),
    "mistral, no window": _mistral(sliding_window=None, head_dim=16),
    "qwen2": _qwen2(),
    "qwen2, tied, yarn rope": _qwen2(tie_word_embeddings=True, **_YARN),
    "qwen2, window on upper layers": _qwen2(use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen3": _qwen3(head_dim=16),
    "qwen3, tied, biases": _qwen3(head_dim=8, tie_word_embeddings=True, attention_bias=True),
    "qwen3, window on the last layer": _qwen3(
        head_dim=16, use_sliding_window=True, sliding_window=9, max_window_layers=2
    ),
}


def make(name: str) -> PreTrainedModel:
    """The model of a recipe, in float32."""
    torch.manual_seed(0)
    model = RECIPES[name]().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif parameter_name.endswith(".bias"):
                parameter.normal_(0, 0.3)
    return model


def save(model: PreTrainedModel, folder: Path) -> Path:
    """Save a model as its own library would."""
    model.save_pretrained(folder)
    return folder
