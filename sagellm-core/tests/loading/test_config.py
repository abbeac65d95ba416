"""``config.json``: read as the reference classes read it, and refused by name where it could not be honoured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from sagellm_core.loading import read_config
from sagellm_core.loading.hf_config import parse_hf_config
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .files import CONFIG, folder

SIZES = {
    "vocab_size": 16,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    "theirs",
    [
        LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        LlamaConfig(**SIZES, head_dim=16, rope_parameters={"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}),
        MistralConfig(**SIZES, sliding_window=8),
        MistralConfig(**SIZES, sliding_window=None),
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        Qwen2Config(**SIZES),
        Qwen3Config(**SIZES, attention_bias=True),
    ],
    ids=lambda config: config.model_type,
)
def test_a_saved_configuration_reads_as_the_reference_class_reads_it(tmp_path: Path, theirs: PreTrainedConfig) -> None:
    theirs.save_pretrained(tmp_path)
    config = read_config_of(tmp_path)
    assert config.vocab_size == theirs.vocab_size
    assert config.hidden_size == theirs.hidden_size
    assert config.num_layers == theirs.num_hidden_layers
    assert (config.num_heads, config.num_kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    assert config.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert config.norm_eps == theirs.rms_norm_eps
    assert config.tie_word_embeddings == theirs.tie_word_embeddings
    assert config.max_position_embeddings == theirs.max_position_embeddings
    assert config.rope is not None
    assert config.rope.theta == theirs.rope_parameters["rope_theta"]
    assert config.rope.kind == theirs.rope_parameters["rope_type"]
    window = getattr(theirs, "sliding_window", None)
    types = getattr(theirs, "layer_types", None) or ["sliding_attention"] * theirs.num_hidden_layers
    assert config.windows == tuple(window if kind == "sliding_attention" else None for kind in types)
    assert config.qkv_bias == (theirs.model_type == "qwen2" or getattr(theirs, "attention_bias", False))
    assert config.attention_out_bias == getattr(theirs, "attention_bias", False)
    assert config.mlp_bias == getattr(theirs, "mlp_bias", False)
    assert config.qk_norm == (theirs.model_type == "qwen3")


def read_config_of(path: Path) -> Any:
    return parse_hf_config(json.loads((path / "config.json").read_text()), path / "config.json")


def test_rope_parameters_of_before_transformers_5_read_the_same() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    old = parse_hf_config({**CONFIG, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **scaling}}, "old")
    new = parse_hf_config({**CONFIG, "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **scaling}}, "new")
    assert old == new
    assert old.rope is not None
    assert (old.rope.kind, old.rope.factor, old.rope.original_max_position_embeddings) == ("llama3", 8.0, 32)


def test_a_key_that_only_other_families_read_takes_no_positions_away() -> None:
    assert parse_hf_config({**CONFIG, "position_embedding_type": "absolute"}, "c").rope is not None


def test_yarn_lengthens_the_context_it_is_given_beside() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert parse_hf_config({**CONFIG, "rope_scaling": scaling}, "c").max_position_embeddings == 256


def test_a_file_that_omits_what_its_class_defaults_reads_as_the_class() -> None:
    mistral = {key: value for key, value in CONFIG.items() if key != "num_key_value_heads"}
    mistral = {**mistral, "model_type": "mistral", "num_attention_heads": 8}
    assert parse_hf_config(mistral, "c").windows == (4096, 4096)
    assert parse_hf_config({**mistral, "sliding_window": None}, "c").windows == (None, None)
    assert parse_hf_config(mistral, "c").num_kv_heads == 8
    assert parse_hf_config({**CONFIG, "model_type": "qwen3"}, "c").head_dim == 128


def test_end_tokens_come_from_both_files(tmp_path: Path) -> None:
    path = folder(
        tmp_path / "m",
        {**CONFIG, "eos_token_id": 2},
        generation_config__json=b'{"eos_token_id": [7, 2], "bos_token_id": 5}',
    )
    (path / "model.safetensors").write_bytes(b"")
    config = read_config(path)
    assert config.eos_token_ids == (7, 2)
    assert config.bos_token_id == 5


def _quantized(method: str, **settings: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **settings}}


def _compressed(group: Any = None, weights: Any = None, **settings: Any) -> dict[str, Any]:
    of_group = {"targets": ["Linear"], "weights": weights or {"num_bits": 8}, **(group or {})}
    return _quantized("compressed-tensors", config_groups={"group_0": of_group}, **settings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"rope_scaling": {"rope_type": "spiral", "factor": 2.0}},
            "rope type 'spiral' is not offered; known are default",
        ),
        ({"model_type": "falcon", "alibi": True}, "alibi"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention"),
        (
            _quantized("bitsandbytes", load_in_4bit=True),
            "'bitsandbytes', which is not offered; known are gptq, awq, comp",
        ),
        ({"quantization_config": {"bits": 4}}, "'an unnamed method', which is not offered; known are gptq"),
        (_quantized("mxfp4"), "'mxfp4', which is not offered; known are gptq"),
        (_quantized("gptq", bits=5), "bits 5 is not offered for gptq; known are 2, 3, 4, 8"),
        (_quantized("gptq", checkpoint_format="marlin"), "checkpoint_format 'marlin' is not offered"),
        (_quantized("awq", bits=8), "bits 8 is not offered for awq"),
        (_quantized("awq", version="gemv"), "version 'gemv' is not offered for awq"),
        (_quantized("fp8", fmt="e5m2"), "fmt 'e5m2' is not offered"),
        (_compressed(format="nvfp4-pack-quantized"), "format 'nvfp4-pack-quantized' is not offered; known are pack"),
        (_compressed(group={"format": "marlin-24"}), "format 'marlin-24' is not offered"),
        (_compressed(quantization_status="frozen"), "quantization_status 'frozen' is not offered"),
        (_compressed(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity 'sparse-24-bitmask' is not offered"),
        (_compressed(transform_config={"config_groups": {"R1": {}}}), "transform_config.* is not offered"),
        (_compressed(weights={"num_bits": 4, "type": "float"}), "weights of 4 bits as float are not offered"),
        (_compressed(weights={"num_bits": 8, "strategy": "token"}), "strategy 'token' is not offered"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer type 'linear_attention' is not offered"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SageLLMError, match=said) as caught:
        parse_hf_config({**CONFIG, **change}, "config.json")
    assert caught.value.code is ErrorCode.UNSUPPORTED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "big"}, "hidden_size is 'big'; it must be a whole number from 1"),
        ({"hidden_size": 33}, r"hidden_size \(33\) is not a multiple of num_attention_heads \(4\)"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1; it must be a positive number"),
        ({"rms_norm_eps": 10**400}, "must be a positive number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be true or false"),
        ({"eos_token_id": [1, "x"]}, "eos_token_id is"),
        ({"rope_scaling": []}, "rope_scaling is .*; it must be an object"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "cannot shorten"),
        ({"partial_rotary_factor": 0.01}, "partial_rotary_factor 0.01"),
        ({"layer_types": ["full_attention"]}, "one type for each of 2 layers"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
            "says nothing of layers of type sliding_attention",
        ),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "short_factor must list 4 numbers"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "must list 0 or 1 for each layer"),
        (
            {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 3},
            "not a multiple of num_kv_heads",
        ),
        ({"architectures": None, "model_type": None}, "names neither architectures nor model_type"),
    ],
)
def test_values_that_cannot_be_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SageLLMError, match=said) as caught:
        parse_hf_config({**CONFIG, **change}, "config.json")
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert "config.json" in caught.value.message


def test_rotary_embedding_need_be_said_only_of_layers_that_there_are() -> None:
    table = {"full_attention": {"rope_type": "default", "rope_theta": 500.0}}
    stated = {"layer_types": ["full_attention"] * 2, "rope_parameters": table}
    config = parse_hf_config({**CONFIG, **stated}, "config.json")
    assert [rope.theta for layer in range(2) if (rope := config.rope_of(layer))] == [500.0, 500.0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = [*CONFIG, "rope_scaling", "rope_theta", "layer_types", "sliding_window", "head_dim", "eos_token_id", "dtype"]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_any_json_is_read_or_refused_but_never_a_crash(changes: dict[str, Any]) -> None:
    try:
        parse_hf_config({**CONFIG, **changes}, "config.json")
    except SageLLMError as error:
        refusal = error.message
    else:
        refusal = "config.json was read"
    assert "config.json" in refusal
