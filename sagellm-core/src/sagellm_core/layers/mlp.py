"""The MLP of a decoder layer, with a gate or without.

Knows nothing of experts or routing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


@dataclass(frozen=True)
class PlainMLP:
    """``down(act(up(x)))``.

    Attributes:
        up: ``E`` to ``I``.
        down: ``I`` to ``E``.
        activate: The activation.
    """

    up: Linear
    down: Linear
    activate: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """``[T, E]`` to ``[T, E]``."""
        return self.down(self.activate(self.up(x)))


ACTIVATIONS: Mapping[str, str] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""What checkpoints call activations, and what they are called here."""
GATED = frozenset(ACTIVATIONS.values())
"""Activations of a gate."""
_PLAIN = frozenset({"gelu", "gelu_tanh"})
"""Activations that need no gate to multiply with."""


def gate_of(ops: Backend[Tensor], activation: str) -> Gate:
    """The gating operation of an activation, as :data:`ACTIVATIONS` names them here."""
    if activation == "silu":
        return ops.silu_mul
    return partial(ops.gelu_mul, approximate=activation == "gelu_tanh")


def build_mlp(
    pack: Packer,
    config: ModelConfig,
    name: str,
    *,
    gate_up: Sequence[str] = ("gate_proj", "up_proj"),
    down: str = "down_proj",
    inner: int | None = None,
) -> GatedMLP:
    """A gated MLP out of a module's projections.

    Args:
        pack: Packs the weights.
        config: The model's numbers.
        name: The module.
        gate_up: Names of gate and up within the module, or the one name of both fused.
        down: Name of the down projection.
        inner: Width, where it is not the configuration's.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for an activation that is not offered, listing those that are.
    """
    activation = activation_of(config, GATED)
    width, inner, bias = config.hidden_size, inner or config.intermediate_size, config.mlp_bias
    names = [f"{name}.{projection}" for projection in gate_up]
    rows = (inner, inner) if len(names) == 2 else (2 * inner,)
    return GatedMLP(
        gate_up=pack.linear(names, rows, width, Sharding.COLUMN, bias=bias),
        down=pack.linear([f"{name}.{down}"], (width,), inner, Sharding.ROW, bias=bias),
        gate=gate_of(pack.ops, activation),
        activation=activation,
    )


def build_plain_mlp(pack: Packer, config: ModelConfig, name: str, *, up: str, down: str) -> PlainMLP:
    """An MLP without a gate.

    Args:
        pack: Packs the weights.
        config: The model's numbers.
        name: The module.
        up, down: Names of its projections.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for an activation that is not offered, listing those that are.
    """
    activation = activation_of(config, _PLAIN)
    width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
    return PlainMLP(
        up=pack.linear([f"{name}.{up}"], (inner,), width, Sharding.COLUMN, bias=bias),
        down=pack.linear([f"{name}.{down}"], (width,), inner, Sharding.ROW, bias=bias),
        activate=partial(pack.ops.gelu, approximate=activation == "gelu_tanh"),
    )


def activation_of(config: ModelConfig, offered: frozenset[str]) -> str:
    """The configuration's activation as :data:`ACTIVATIONS` names it here.

    Raises:
        SageLLMError: ``UNSUPPORTED`` for one that is not ``offered``, listing those that are.
    """
    activation = ACTIVATIONS.get(config.hidden_act)
    if activation not in offered:
        known = ", ".join(name for name, kind in ACTIVATIONS.items() if kind in offered)
        raise SageLLMError(
            ErrorCode.UNSUPPORTED,
            f"activation {config.hidden_act!r} is not offered for {config.architecture}; known are {known}",
            "model",
        )
    return activation
