"""The gated MLP of a decoder layer.

Knows nothing of experts or routing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

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
        activation: Its activation by name.
    """

    gate_up: Linear
    down: Linear
    gate: Gate
    activation: str

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, E]`` to ``[T, E]``."""
        return self.down(self.gate(self.gate_up(x)))


ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""What checkpoints call activations, and what they are called here."""


def gate_of(ops: Backend[Tensor], activation: str) -> Gate:
    """The gating operation of an activation of :data:`ACTIVATIONS`."""
    if activation == "silu":
        return ops.silu_mul
    return partial(ops.gelu_mul, approximate=activation == "gelu_tanh")


def build_mlp(pack: Packer, config: ModelConfig, name: str, *, bias: bool = False) -> GatedMLP:
    """A gated MLP out of ``{name}.gate_proj``, ``{name}.up_proj`` and ``{name}.down_proj``.

    Args:
        pack: Packs the weights.
        config: The model's numbers.
        name: The module.
        bias: The projections have biases.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for an activation that is not offered, listing those that are.
    """
    activation = ACTIVATIONS.get(config.hidden_act)
    if activation is None:
        raise SageLLMError(
            ErrorCode.UNSUPPORTED,
            f"activation {config.hidden_act!r} is not offered; known are {', '.join(ACTIVATIONS)}",
            "model",
        )
    width, inner = config.hidden_size, config.intermediate_size
    projections = [f"{name}.gate_proj", f"{name}.up_proj"]
    return GatedMLP(
        gate_up=pack.linear(projections, (inner, inner), width, Sharding.COLUMN, bias=bias),
        down=pack.linear([f"{name}.down_proj"], (width,), inner, Sharding.ROW, bias=bias),
        gate=gate_of(pack.ops, activation),
        activation=activation,
    )
