"""The gated MLP of a decoder layer.

Knows nothing of experts or routing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sagellm_core.loading.config import ModelConfig
from sagellm_protocol.backend import Backend
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .linear import Linear, Sharding, Tensor
from .weights import Packer

Gate = Callable[[Tensor], Tensor]
"""Takes gate and up side by side, ``[T, 2 I]``, to ``[T, I]``."""


@dataclass(frozen=True)
class GatedMLP:
    """``down(act(gate(x)) * up(x))``.

    Attributes:
        gate_up: Gate and up projections, stacked: ``E`` to ``2 I``.
        down: Down projection, ``I`` to ``E``.
        gate: The gating operation.
    """

    gate_up: Linear
    down: Linear
    gate: Gate

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, E]`` to ``[T, E]``."""
        return self.down(self.gate(self.gate_up(x)))


def gate_of(ops: Backend[Tensor], activation: str) -> Gate:
    """The gating operation of an activation by name.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for an activation that is not offered.
    """
    if activation in ("silu", "swish"):
        return ops.silu_mul
    if activation == "gelu":
        return lambda gate_up: ops.gelu_mul(gate_up, approximate=False)
    if activation in ("gelu_pytorch_tanh", "gelu_new"):
        return lambda gate_up: ops.gelu_mul(gate_up, approximate=True)
    offered = "silu, swish, gelu, gelu_pytorch_tanh, gelu_new"
    raise SageLLMError(ErrorCode.UNSUPPORTED, f"activation {activation!r} is not offered; known are {offered}", "model")


def build_mlp(pack: Packer, config: ModelConfig, name: str, *, bias: bool = False) -> GatedMLP:
    """A gated MLP out of ``{name}.gate_proj``, ``{name}.up_proj`` and ``{name}.down_proj``.

    Args:
        pack: Packs the weights.
        config: The model's numbers.
        name: The module.
        bias: The projections have biases.
    """
    width, inner = config.hidden_size, config.intermediate_size
    projections = [f"{name}.gate_proj", f"{name}.up_proj"]
    return GatedMLP(
        gate_up=pack.linear(projections, (inner, inner), width, Sharding.COLUMN, bias=bias),
        down=pack.linear([f"{name}.down_proj"], (width,), inner, Sharding.ROW, bias=bias),
        gate=gate_of(pack.ops, config.hidden_act),
    )
