"""What a checkpoint says of experts and of latent attention, and how each family's ``config.json`` says it.

Knows nothing of weights. Where reference implementations disagree on what a value means, it is refused.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sagellm_protocol.backend import GateSpec, RoutingSpec

from .errors import corrupt, unsupported
from .fields import Fields

if TYPE_CHECKING:
    from .config import ModelConfig

Extras = dict[str, Any]
"""Fields of a :class:`ModelConfig` to replace."""


@dataclass(frozen=True)
class MixtureConfig:
    """Layers of experts.

    Attributes:
        experts: Experts of a layer, X.
        inner: Width of an expert.
        routing: How a token's experts are chosen.
        sparse: Of each layer, whether it has experts; one that has none has an MLP.
        shared_inner: Width of the expert that every token goes through; 0 where there is none.
        corrected: Scores are corrected for choosing.
        gate: What becomes of gate and up, where it is more than the activation.
    """

    experts: int
    inner: int
    routing: RoutingSpec
    sparse: tuple[bool, ...]
    shared_inner: int = 0
    corrected: bool = False
    gate: GateSpec | None = None


@dataclass(frozen=True)
class LatentConfig:
    """Attention whose keys and values are kept as one short vector (DeepSeek V2).

    Attributes:
        query_rank: Width that queries are squeezed to, if they are.
        rank: Width that keys and values are squeezed to: what is kept.
        plain_dim: Dimensions of a head without position.
        rope_dim: Dimensions of a head with it; their keys are shared by all heads, and kept beside.
        value_dim: Dimensions of a head's value.
    """

    query_rank: int | None
    rank: int
    plain_dim: int
    rope_dim: int
    value_dim: int


def _routing(fields: Fields, experts: int, **how: Any) -> RoutingSpec:
    top_k = fields.integer("num_experts_per_tok")
    if top_k > experts:
        raise corrupt(fields.source, f"num_experts_per_tok is {top_k}, more than the {experts} experts of a layer")
    return RoutingSpec(top_k, **how)


def mixtral(fields: Fields, config: ModelConfig) -> Extras:
    """Mixtral: experts as wide as an MLP would be, in every layer."""
    experts = fields.integer("num_local_experts")
    routing = _routing(fields, experts, renormalize=True)
    every = (True,) * config.num_layers
    return {"mixture": MixtureConfig(experts, config.intermediate_size, routing, every)}


def qwen_moe(fields: Fields, config: ModelConfig) -> Extras:
    """Qwen2-MoE and Qwen3-MoE: experts in some layers, and in the former one that every token goes through."""
    # What transformers writes for Qwen3-MoE, and what Qwen published.
    experts = fields.integer("num_experts" if fields.values.get("num_experts") is not None else "num_local_experts")
    step = fields.integer("decoder_sparse_step", 1)
    dense = fields.integers("mlp_only_layers")
    mixture = MixtureConfig(
        experts=experts,
        inner=fields.integer("moe_intermediate_size"),
        routing=_routing(fields, experts, renormalize=fields.flag("norm_topk_prob", False)),
        sparse=tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(config.num_layers)),
        shared_inner=fields.integer("shared_expert_intermediate_size", 0),
    )
    return {"mixture": mixture, "qk_norm": config.model_type == "qwen3_moe"}


def llama4(fields: Fields, config: ModelConfig) -> Extras:
    """Llama 4: experts in some layers, given their shares of a token, and one that every token goes through."""
    experts, step = fields.integer("num_local_experts"), fields.integer("interleave_moe_layer_step", 1)
    listed = fields.values.get("moe_layers")
    sparse = fields.integers("moe_layers") if listed is not None else range(step - 1, config.num_layers, step)
    mixture = MixtureConfig(
        experts=experts,
        inner=config.intermediate_size,
        routing=_routing(fields, experts, scoring="sigmoid"),
        sparse=tuple(layer in sparse for layer in range(config.num_layers)),
        shared_inner=config.intermediate_size,
        gate=GateSpec(config.hidden_act, shares_first=True),
    )
    return {"mixture": mixture}


def gpt_oss(fields: Fields, config: ModelConfig) -> Extras:
    """GPT-OSS: experts in every layer, their gates bounded."""
    if config.hidden_act != "silu":
        raise unsupported(fields.source, f"activation {config.hidden_act!r} is not offered for GPT-OSS; silu is")
    experts = fields.integer("num_local_experts")
    limit, slope = fields.number("swiglu_limit", 7.0), fields.number("swiglu_alpha", 1.702)
    mixture = MixtureConfig(
        experts=experts,
        inner=config.intermediate_size,
        routing=_routing(fields, experts, renormalize=True),
        sparse=(True,) * config.num_layers,
        gate=GateSpec(slope=slope, shift=1.0, limit=limit),
    )
    return {"mixture": mixture}


def deepseek(fields: Fields, config: ModelConfig) -> Extras:
    """DeepSeek V2 and V3: latent attention; experts in groups, behind layers that have MLPs."""
    latent = LatentConfig(
        query_rank=fields.integer("q_lora_rank", None),
        rank=fields.integer("kv_lora_rank"),
        plain_dim=fields.integer("qk_nope_head_dim"),
        rope_dim=fields.integer("qk_rope_head_dim"),
        value_dim=fields.integer("v_head_dim"),
    )
    assert config.rope is not None, "the family is rotary"
    head_dim = latent.plain_dim + latent.rope_dim
    experts, dense = fields.integer("n_routed_experts"), fields.integer("first_k_dense_replace", 0, minimum=0)
    inner = fields.integer("moe_intermediate_size")
    v3 = config.model_type == "deepseek_v3"
    mixture = MixtureConfig(
        experts=experts,
        inner=inner,
        routing=_deepseek_v3(fields, experts) if v3 else _deepseek_v2(fields, experts),
        sparse=tuple(layer >= dense for layer in range(config.num_layers)),
        shared_inner=inner * fields.integer("n_shared_experts", 0, minimum=0),
        corrected=v3,
    )
    scale = head_dim**-0.5
    if config.rope.kind != "default" and config.rope.mscale_all_dim and config.rope.factor > 1:
        scale *= (0.1 * config.rope.mscale_all_dim * math.log(config.rope.factor) + 1.0) ** 2
    interleaved = not v3 or fields.flag("rope_interleave", True)
    return {
        "mixture": mixture,
        "latent": latent,
        "head_dim": head_dim,
        "rope": dataclasses.replace(config.rope, interleaved=interleaved),
        "multipliers": dataclasses.replace(config.multipliers, attention=scale),
        "draft_layers": fields.integer("num_nextn_predict_layers", 0, minimum=0) if v3 else 0,
    }


def _deepseek_v2(fields: Fields, experts: int) -> RoutingSpec:
    method = fields.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise unsupported(fields.source, f"topk_method {method!r} is not offered; greedy, group_limited_greedy are")
    if fields.flag("norm_topk_prob", False):
        raise unsupported(fields.source, "norm_topk_prob, which the reference class ignores, is not offered here")
    scale = fields.number("routed_scaling_factor", 1.0)
    if method == "greedy":
        return _routing(fields, experts, scale=scale)
    groups, top_groups = _groups(fields, experts)
    return _routing(fields, experts, scale=scale, groups=groups, top_groups=top_groups)


def _deepseek_v3(fields: Fields, experts: int) -> RoutingSpec:
    for key, offered in (("topk_method", "noaux_tc"), ("scoring_func", "sigmoid")):
        found = fields.text(key, offered)
        if found != offered:
            raise unsupported(fields.source, f"{key} {found!r} is not offered for DeepSeek V3; {offered} is")
    groups, top_groups = _groups(fields, experts)
    if experts // groups < 2:
        raise corrupt(fields.source, f"n_group ({groups}) leaves fewer than two of {experts} experts to a group")
    return _routing(
        fields,
        experts,
        scoring="sigmoid",
        renormalize=fields.flag("norm_topk_prob", True),
        scale=fields.number("routed_scaling_factor", 2.5),
        groups=groups,
        top_groups=top_groups,
        group_best=2,
    )


def _groups(fields: Fields, experts: int) -> tuple[int, int]:
    groups = fields.integer("n_group")
    top_groups = fields.integer("topk_group", maximum=groups)
    if experts % groups:
        raise corrupt(fields.source, f"n_routed_experts ({experts}) is not a multiple of n_group ({groups})")
    if top_groups * (experts // groups) < fields.integer("num_experts_per_tok"):
        raise corrupt(fields.source, f"topk_group ({top_groups}) leaves fewer experts than num_experts_per_tok")
    return groups, top_groups
