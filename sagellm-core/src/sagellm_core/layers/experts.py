"""A layer's experts: a router chooses a few for each token, and one that every token goes through may stand beside.

Choosing and computing are one operation each of the backend. Knows nothing of how a checkpoint stores experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sagellm_core.loading.config import ModelConfig
from sagellm_protocol.backend import Backend, GateSpec, RoutingSpec, Weight
from sagellm_protocol.devices import DType

from .expert_weights import read_experts
from .linear import Tensor
from .mlp import GATED, activation_of, build_mlp
from .weights import Packer


@dataclass(frozen=True)
class Router:
    """Chooses experts.

    Attributes:
        ops: The backend.
        weight: ``E`` to ``X``, in float32.
        spec: How it chooses.
        correction: Added to scores for choosing, ``[X]``, if any.
    """

    ops: Backend[Tensor]
    weight: Weight
    spec: RoutingSpec
    correction: Tensor | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[T, E]`` to experts and their shares, each ``[T, K]``."""
        return self.ops.route(x, self.weight, self.spec, self.correction)


@dataclass(frozen=True)
class Experts:
    """Each token through the experts that are chosen for it, and through what is shared.

    Attributes:
        ops: The backend.
        router: Chooses.
        gate_up: Of each expert, gate and up projections, stacked: ``E`` to ``2 I``.
        down: Of each expert, ``I`` to ``E``.
        gate: What becomes of gate and up.
        shared: What every token goes through besides, if anything.
    """

    ops: Backend[Tensor]
    router: Router
    gate_up: tuple[Weight, ...]
    down: tuple[Weight, ...]
    gate: GateSpec
    shared: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, E]`` to ``[T, E]``."""
        mixed = self.ops.moe(x, *self.router(x), self.gate_up, self.down, self.gate)
        return mixed if self.shared is None else mixed + self.shared(x)


_SHARE_OF_ONE = RoutingSpec(1, scoring="sigmoid")
"""A router of a single expert decides only how much of it there is."""


def build_experts(
    pack: Packer,
    config: ModelConfig,
    name: str,
    *,
    router: str = "gate",
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    bias: bool = False,
    halves: bool = False,
    shared: str | None = None,
    shared_gate: str | None = None,
) -> Experts:
    """Experts out of a module, where ``experts`` holds them; numbers are the configuration's.

    Args:
        pack: Packs the weights.
        config: The model's numbers.
        name: The module.
        router: Name of the router within it.
        projections: Names of gate, up and down projections of an expert.
        bias: Whether router and experts have biases.
        halves: Gate and up of all experts are one tensor, transposed, gate first.
        shared: Name of the MLP that every token goes through, if there is one.
        shared_gate: Name of the projection whose sigmoid is the share of that MLP, if it is not one.
    """
    mixture, width = config.mixture, config.hidden_size
    assert mixture is not None, "loading states it for every family with experts"
    gate = mixture.gate or GateSpec(activation_of(config, GATED))
    correction = None
    if mixture.corrected:
        correction = pack.vector(f"{name}.{router}.e_score_correction_bias", mixture.experts, DType.FLOAT32)
    choose = Router(
        pack.ops, pack.router(f"{name}.{router}", mixture.experts, width, bias=bias), mixture.routing, correction
    )
    gate_up, down = [], []
    sizes = mixture.experts, mixture.inner, width
    for expert in read_experts(pack, f"{name}.experts", *sizes, projections, bias=bias, halves=halves):
        gate_up.append(pack.packed(expert.gate_up, expert.gate_up_bias))
        down.append(pack.packed(expert.down, expert.down_bias))
    beside: Callable[[Tensor], Tensor] | None = None
    if shared is not None and mixture.shared_inner:
        mlp = build_mlp(pack, config, f"{name}.{shared}", inner=mixture.shared_inner)
        beside = mlp
        if shared_gate is not None:
            share = Router(pack.ops, pack.router(f"{name}.{shared_gate}", 1, width), _SHARE_OF_ONE)
            beside = Experts(pack.ops, share, (mlp.gate_up.weight,), (mlp.down.weight,), gate)
    pack.keep_from_adapters(name)
    return Experts(pack.ops, choose, tuple(gate_up), tuple(down), gate, beside)
