"""What GGUF files say of experts, and how families that have them name their modules.

Knows nothing of weights. Most files do not state whether shares are made to sum to one: it is the family's way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sagellm_protocol.backend import GateSpec, RoutingSpec

from .config import ModelConfig
from .errors import corrupt, unsupported
from .fields import Fields
from .mixture import MixtureConfig

EXPERTS: Mapping[str, str] = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
"""What most families with experts call their modules."""
SHARED_EXPERT: Mapping[str, str] = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
MIXTRAL_EXPERTS: Mapping[str, str] = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.w1",
    "ffn_up_exps": "block_sparse_moe.experts.w3",
    "ffn_down_exps": "block_sparse_moe.experts.w2",
}


def experts(*, renormalize: bool, gate: GateSpec | None = None) -> Callable[[Fields, ModelConfig], dict[str, Any]]:
    """How a family's file is read whose layers all have experts.

    Args:
        renormalize: The shares of a token's experts are made to sum to one, unless the file says.
        gate: What becomes of gate and up, where it is more than the activation.
    """

    def read(fields: Fields, config: ModelConfig) -> dict[str, Any]:
        count, used = fields.integer("expert_count"), fields.integer("expert_used_count")
        if used > count:
            raise corrupt(fields.source, f"expert_used_count is {used}, more than the {count} of expert_count")
        for key, neutral in (("expert_weights_scale", 1.0), ("expert_gating_func", 1), ("expert_group_count", 1)):
            if fields.values.get(key, neutral) != neutral:
                raise unsupported(fields.source, f"{key} ({fields.values[key]!r}) is not offered for this architecture")
        mixture = MixtureConfig(
            experts=count,
            inner=fields.integer("expert_feed_forward_length", config.intermediate_size),
            routing=RoutingSpec(used, renormalize=fields.flag("expert_weights_norm", renormalize)),
            sparse=(True,) * config.num_layers,
            shared_inner=fields.integer("expert_shared_feed_forward_length", 0),
            gate=gate,
        )
        return {"mixture": mixture}

    return read


def gpt_oss(fields: Fields, config: ModelConfig) -> dict[str, Any]:
    """GPT-OSS: bounded gates; the ramp of its rotary scaling ends between dimensions, which files do not state."""
    read = experts(renormalize=True, gate=GateSpec(slope=1.702, shift=1.0, limit=7.0))
    assert config.rope is not None, "the family is rotary"
    return {**read(fields, config), "rope": dataclasses.replace(config.rope, truncate=False)}
