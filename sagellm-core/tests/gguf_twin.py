"""A reference model written as a GGUF file by the ``gguf`` package, as llama.cpp's converter would write it.

Names come from the package's own tensor maps, so that ours are tested against another's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

Floats = NDArray[np.float32]
_HEAD_NORM = re.compile(r"(.*\.[qk]_layernorm)\.norms\.(\d+)\.weight")


def _common(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", config.num_attention_heads))
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    head_dim = getattr(config, "head_dim", None)
    if head_dim:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon)
    if rope:
        writer.add_rope_freq_base(rope["rope_theta"])
        size = head_dim or config.hidden_size // config.num_attention_heads
        writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    window = getattr(config, "sliding_window", None)
    if window or config.model_type == "phi3":  # whose converter writes 0 where there is none
        writer.add_sliding_window(window or 0)


def _gemma2(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _experts(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_expert_count(getattr(config, "num_experts", None) or config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    for key, add in (
        ("moe_intermediate_size", writer.add_expert_feed_forward_length),
        ("shared_expert_intermediate_size", writer.add_expert_shared_feed_forward_length),
    ):
        if hasattr(config, key):
            add(getattr(config, key))


def _gpt_oss(writer: gguf.GGUFWriter, config: Any) -> None:
    _experts(writer, config)
    rope = config.rope_parameters
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _granite(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _phi3(writer: gguf.GGUFWriter, config: Any) -> None:
    rope = config.rope_parameters
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        writer.add_rope_scaling_attn_factors(rope["attention_factor"])
        for which in ("long", "short"):
            writer.add_tensor(f"rope_factors_{which}.weight", np.asarray(rope[f"{which}_factor"], dtype=np.float32))


def _stablelm(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_parallel_residual(config.use_parallel_residual)


FAMILIES: Mapping[str, tuple[str, Callable[[gguf.GGUFWriter, Any], None] | None]] = {
    "gemma": ("GEMMA", None),
    "gemma2": ("GEMMA2", _gemma2),
    "gemma3_text": ("GEMMA3", None),
    "gpt2": ("GPT2", None),
    "gpt_oss": ("GPT_OSS", _gpt_oss),
    "granite": ("GRANITE", _granite),
    "llama": ("LLAMA", None),
    "mixtral": ("LLAMA", _experts),
    "olmo2": ("OLMO2", None),
    "phi3": ("PHI3", _phi3),
    "qwen2": ("QWEN2", None),
    "qwen2_moe": ("QWEN2MOE", _experts),
    "qwen3": ("QWEN3", None),
    "qwen3_moe": ("QWEN3MOE", _experts),
    "smollm3": ("SMOLLM3", None),
    "stablelm": ("STABLELM", _stablelm),
}
_NEIGHBOURS = frozenset({"granite", "llama", "mixtral", "smollm3"})
"""Families whose rotary pairs llama.cpp takes as neighbours."""


def write(model: PreTrainedModel, path: Path) -> Path:
    """Write ``model`` to ``path`` in F32."""
    config: Any = model.config
    name, say = FAMILIES[config.model_type]
    arch = gguf.MODEL_ARCH[name]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    _common(writer, config)
    if say is not None:
        say(writer, config)
    held = {key: value.numpy() for key, value in model.state_dict().items()}
    for tensor, values in _split(_stacked(held), config).items():
        if tensor == "lm_head.weight" and config.tie_word_embeddings:
            continue
        called = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        assert called is not None, tensor
        if tensor.endswith(".sinks"):
            called = f"{called}.weight"
        writer.add_tensor(called, np.ascontiguousarray(_converted(tensor, values, config)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _stacked(tensors: Mapping[str, Floats]) -> dict[str, Floats]:
    """Norms of each head stacked into one matrix."""
    heads: dict[str, list[Floats]] = {}
    result: dict[str, Floats] = {}
    for name, values in tensors.items():
        match = _HEAD_NORM.fullmatch(name)
        if match is None:
            result[name] = values
        else:
            heads.setdefault(f"{match[1]}.weight", []).append(values)
    return {**result, **{name: np.stack(values) for name, values in heads.items()}}


def _split(tensors: Mapping[str, Floats], config: Any) -> dict[str, Floats]:
    """Gates and ups of experts apart, each as the product of a row wants it."""
    result: dict[str, Floats] = {}
    for name, values in tensors.items():
        module, _, part = name.rpartition(".")
        if not module.endswith(".experts"):
            result[name] = values
            continue
        part, kind = (part.removesuffix("_bias"), "bias") if part.endswith("_bias") else (part, "weight")
        in_turns = config.model_type == "gpt_oss"
        if in_turns and kind == "weight":
            values = values.swapaxes(1, 2)
        if part == "down_proj":
            result[f"{module}.down_proj.{kind}"] = values
            continue
        gate, up = (values[:, 0::2], values[:, 1::2]) if in_turns else np.split(values, 2, axis=1)
        result |= {f"{module}.gate_proj.{kind}": gate, f"{module}.up_proj.{kind}": up}
    return result


def _converted(tensor: str, values: Floats, config: Any) -> Floats:
    if config.model_type.startswith("gemma") and tensor.endswith("norm.weight"):
        return values + 1
    if config.model_type == "gpt2" and tensor.endswith((".c_attn.weight", ".c_fc.weight", ".c_proj.weight")):
        return values.T
    if tensor.endswith(".shared_expert_gate.weight"):
        return values.squeeze()
    if config.model_type in _NEIGHBOURS and tensor.split(".")[-2] in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if ".q_proj." in tensor else config.num_key_value_heads
        halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)
    return values
