"""What each family's GGUF files call tensors, and what they say, or leave unsaid, beyond the usual: a table by name.

Conventions are those of llama.cpp's converter: it adds Gemma's one to norms, transposes GPT-2's projections, stacks
norms of heads, and reorders query and key rows of families whose rotary pairs it takes as neighbours. Knows nothing of
how a file is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .config import ModelConfig, Multipliers, RopeConfig
from .fields import Fields
from .gguf_mixture import EXPERTS, MIXTRAL_EXPERTS, SHARED_EXPERT, experts, gpt_oss

Extras = dict[str, Any]
"""Fields of a :class:`ModelConfig` to replace."""

TOP: Mapping[str, str] = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_LAYER: Mapping[str, str] = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""What most families call their modules."""
_POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}


@dataclass(frozen=True)
class GGUFFamily:
    """How one family's files are read.

    Attributes:
        architecture: Class of the reference implementation.
        model_type: The family's name in a ``config.json``.
        top: Modules outside the layers: the file's name and Hugging Face's.
        layers: The list of layers.
        in_layer: Modules of a layer likewise.
        permuted: Query and key rows are in the order of neighbouring rotary pairs.
        rotary: It has a rotary embedding.
        act: Activation, which files do not state.
        experts: Its layers have experts.
        parameters: Names in a file of what is a parameter of a module, rather than a module with a weight.
        slides: Whether the layer of a number has a window, where the file states one.
        honoured: Keys that would change numbers, and that ``extras`` takes in.
        extras: What else the file says, beside the configuration read so far.
    """

    architecture: str
    model_type: str
    top: Mapping[str, str] = field(default_factory=lambda: TOP)
    layers: str = "model.layers"
    in_layer: Mapping[str, str] = field(default_factory=lambda: IN_LAYER)
    permuted: bool = False
    rotary: bool = True
    act: str = "silu"
    experts: bool = False
    parameters: frozenset[str] = frozenset()
    slides: Callable[[Fields, int], bool] = lambda fields, layer: True
    honoured: frozenset[str] = frozenset()
    extras: Callable[[Fields, ModelConfig], Extras] = lambda fields, config: {}


def _all_but_every(number: int) -> Callable[[Fields, int], bool]:
    return lambda fields, layer: (layer + 1) % fields.integer("attention.sliding_window_pattern", number) != 0


def _gemma(fields: Fields, config: ModelConfig) -> Extras:
    return {"multipliers": Multipliers(embedding=math.sqrt(config.hidden_size))}


def _gemma2(fields: Fields, config: ModelConfig) -> Extras:
    # Files do not state the scale: the largest of each generation divides the width by its heads, the others do not.
    largest = config.num_layers == {"gemma2": 46, "gemma3_text": 62}[config.model_type]
    size = config.hidden_size // config.num_heads if largest else config.head_dim
    multipliers = Multipliers(
        embedding=math.sqrt(config.hidden_size),
        attention=size**-0.5,
        attention_softcap=fields.number("attn_logit_softcapping", None),
        logits_softcap=fields.number("final_logit_softcapping", None),
    )
    return {"multipliers": multipliers}


def _gemma3(fields: Fields, config: ModelConfig) -> Extras:
    assert config.rope is not None, "the family is rotary"
    local = RopeConfig(fields.number("rope.freq_base_swa", 10_000.0), config.rope.rotary_dim)
    slides = _all_but_every(6)
    ropes = tuple(local if slides(fields, layer) else config.rope for layer in range(config.num_layers))
    return {**_gemma2(fields, config), "layer_ropes": ropes}


def _smollm3(fields: Fields, config: ModelConfig) -> Extras:
    ropes = tuple(config.rope if (layer + 1) % 4 else None for layer in range(config.num_layers))
    return {"layer_ropes": ropes}


def _granite(fields: Fields, config: ModelConfig) -> Extras:
    multipliers = Multipliers(
        embedding=fields.number("embedding_scale", 1.0),
        attention=fields.number("attention.scale", None),
        residual=fields.number("residual_scale", 1.0),
        logits=1 / fields.number("logit_scale", 1.0),
    )
    return {"multipliers": multipliers}


def _stablelm(fields: Fields, config: ModelConfig) -> Extras:
    return {"parallel": fields.flag("use_parallel_residual", False)}


MIXTRAL = "llama with experts"
"""Mixtral's files say ``llama``, and that there are experts."""
_GEMMA2_LAYER = {**IN_LAYER, **_POST_NORMS, "ffn_norm": "pre_feedforward_layernorm"}

GGUF_FAMILIES: Mapping[str, GGUFFamily] = {
    "gemma": GGUFFamily("GemmaForCausalLM", "gemma", act="gelu_pytorch_tanh", extras=_gemma),
    "gemma2": GGUFFamily(
        "Gemma2ForCausalLM",
        "gemma2",
        in_layer=_GEMMA2_LAYER,
        act="gelu_pytorch_tanh",
        slides=_all_but_every(2),
        honoured=frozenset({"attn_logit_softcapping", "final_logit_softcapping"}),
        extras=_gemma2,
    ),
    "gemma3": GGUFFamily(
        "Gemma3ForCausalLM",
        "gemma3_text",
        in_layer=_GEMMA2_LAYER,
        act="gelu_pytorch_tanh",
        slides=_all_but_every(6),
        honoured=frozenset({"final_logit_softcapping"}),
        extras=_gemma3,
    ),
    "gpt-oss": GGUFFamily(
        "GptOssForCausalLM",
        "gpt_oss",
        in_layer={
            **IN_LAYER,
            **EXPERTS,
            "attn_sinks": "self_attn.sinks",
            "ffn_gate_inp": "mlp.router",
            "post_attention_norm": "post_attention_layernorm",
        },
        experts=True,
        parameters=frozenset({"attn_sinks"}),
        slides=lambda fields, layer: layer % 2 == 0,
        extras=gpt_oss,
    ),
    "gpt2": GGUFFamily(
        "GPT2LMHeadModel",
        "gpt2",
        top={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        layers="transformer.h",
        in_layer={
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        rotary=False,
        act="gelu_new",
    ),
    "granite": GGUFFamily(
        "GraniteForCausalLM",
        "granite",
        permuted=True,
        honoured=frozenset({"attention.scale", "embedding_scale", "residual_scale", "logit_scale"}),
        extras=_granite,
    ),
    "llama": GGUFFamily("LlamaForCausalLM", "llama", permuted=True),
    MIXTRAL: GGUFFamily(
        "MixtralForCausalLM",
        "mixtral",
        in_layer={**IN_LAYER, **MIXTRAL_EXPERTS},
        permuted=True,
        experts=True,
        extras=experts(renormalize=True),
    ),
    "olmo2": GGUFFamily("Olmo2ForCausalLM", "olmo2", in_layer={**IN_LAYER, **_POST_NORMS}),
    "phi3": GGUFFamily(
        "Phi3ForCausalLM",
        "phi3",
        in_layer={**IN_LAYER, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    ),
    "qwen2": GGUFFamily("Qwen2ForCausalLM", "qwen2"),
    "qwen2moe": GGUFFamily(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        in_layer={**IN_LAYER, **EXPERTS, **SHARED_EXPERT},
        experts=True,
        extras=experts(renormalize=False),
    ),
    "qwen3": GGUFFamily("Qwen3ForCausalLM", "qwen3"),
    "qwen3moe": GGUFFamily(
        "Qwen3MoeForCausalLM",
        "qwen3_moe",
        in_layer={**IN_LAYER, **EXPERTS},
        experts=True,
        extras=experts(renormalize=True),
    ),
    "smollm3": GGUFFamily("SmolLM3ForCausalLM", "smollm3", permuted=True, extras=_smollm3),
    "stablelm": GGUFFamily(
        "StableLmForCausalLM",
        "stablelm",
        in_layer={**IN_LAYER, "attn_q_norm": "self_attn.q_layernorm", "attn_k_norm": "self_attn.k_layernorm"},
        honoured=frozenset({"use_parallel_residual"}),
        extras=_stablelm,
    ),
}
"""By GGUF's family names; Mistral's files say ``llama``."""
