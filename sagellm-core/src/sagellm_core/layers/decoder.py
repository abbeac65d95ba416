"""One decoder layer: attention and MLP, with the residual stream carried beside. Two orders, one call.

Knows nothing of what stands before or after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sagellm_protocol.backend import AttentionPlan, KVCache, KVSpec

from .linear import Tensor
from .norm import Norm

MLP = Callable[[Tensor], Tensor]
"""Whatever takes the normalised ``[T, E]`` to what is added to the residual stream: a gated MLP, experts."""


class SelfAttention(Protocol):
    """Whatever attends from the normalised ``[T, E]`` to what is cached."""

    @property
    def spec(self) -> KVSpec:
        """What it keeps of a token."""
        ...

    def __call__(self, x: Tensor, positions: Tensor, cache: KVCache, plan: AttentionPlan) -> Tensor:
        """Attend from ``x`` ``[T, E]`` at ``positions`` ``[T]``, writing to the cache: ``[T, E]``."""
        ...


class Layer(Protocol):
    """What a stack is made of."""

    @property
    def attention(self) -> SelfAttention:
        """Its self-attention, which says what it keeps of a token."""
        ...

    @property
    def mlp(self) -> MLP:
        """Its MLP."""
        ...

    def __call__(
        self, x: Tensor, residual: Tensor | None, positions: Tensor, cache: KVCache, plan: AttentionPlan
    ) -> tuple[Tensor, Tensor]:
        """Run the layer.

        The sum that closes one half is left to the norm that opens the next: a backend adds and normalises in one
        pass.

        Args:
            x: Output of the layer before, ``[T, E]``, not yet added to the residual stream.
            residual: The residual stream, ``[T, E]``; ``None`` where ``x`` is all there is of it.
            positions: ``[T]``.
            cache: The pool.
            plan: Of this step.

        Returns:
            The layer's output, not yet added, and the residual stream.
        """
        ...


@dataclass(frozen=True)
class DecoderLayer:
    """Attention, then the MLP on what attention left.

    Each half may be normalised as it begins (Llama), as it ends before it is added (OLMo 2), or both (Gemma 2).

    Attributes:
        input_norm: Opens attention, if any.
        attention: Self-attention.
        post_norm: Opens the MLP, if any.
        mlp: The MLP.
        attention_out_norm: Closes attention, if any.
        mlp_out_norm: Closes the MLP, if any.
        residual_scale: Multiplies what each half adds to the residual stream.
    """

    input_norm: Norm | None
    attention: SelfAttention
    post_norm: Norm | None
    mlp: MLP
    attention_out_norm: Norm | None = None
    mlp_out_norm: Norm | None = None
    residual_scale: float = 1.0

    def __call__(
        self, x: Tensor, residual: Tensor | None, positions: Tensor, cache: KVCache, plan: AttentionPlan
    ) -> tuple[Tensor, Tensor]:
        """Run the layer; see :meth:`Layer.__call__`."""
        opened, residual = _open(self.input_norm, x, residual)
        attended = self._close(self.attention_out_norm, self.attention(opened, positions, cache, plan))
        opened, residual = _open(self.post_norm, attended, residual)
        return self._close(self.mlp_out_norm, self.mlp(opened)), residual

    def _close(self, norm: Norm | None, x: Tensor) -> Tensor:
        if norm is not None:
            x = norm(x)
        return x if self.residual_scale == 1.0 else x * self.residual_scale


@dataclass(frozen=True)
class ParallelLayer:
    """Attention and the MLP side by side, both reading what entered the layer (GPT-J, Wang & Komatsuzaki 2021).

    Attributes:
        input_norm: Opens attention.
        attention: Self-attention.
        mlp: The MLP.
        mlp_norm: Opens the MLP; without one, the MLP reads what attention reads.
    """

    input_norm: Norm
    attention: SelfAttention
    mlp: MLP
    mlp_norm: Norm | None = None

    def __call__(
        self, x: Tensor, residual: Tensor | None, positions: Tensor, cache: KVCache, plan: AttentionPlan
    ) -> tuple[Tensor, Tensor]:
        """Run the layer; see :meth:`Layer.__call__`."""
        opened, residual = _open(self.input_norm, x, residual)
        transformed = self.mlp(opened if self.mlp_norm is None else self.mlp_norm(residual))
        return self.attention(opened, positions, cache, plan) + transformed, residual


def _open(norm: Norm | None, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """Add ``x`` to the residual stream; returns the sum normalised, and the sum."""
    if norm is not None and residual is not None:
        return norm.after_add(x, residual)
    total = x if residual is None else residual + x
    return (total if norm is None else norm(total)), total
