"""Norms: root-mean-square, layer norm, and layer norm with a weight for each head.

Knows nothing of where in a layer they stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sagellm_protocol.backend import Backend

from .linear import Tensor


class Norm(Protocol):
    """What normalises over the last axis."""

    @property
    def eps(self) -> float:
        """Added to the variance or the mean square."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise ``x``, in its shape and dtype."""
        ...

    def after_add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """``s = x + residual``; returns the normalised ``s``, and ``s``. May overwrite either argument."""
        ...


@dataclass(frozen=True)
class RMSNorm:
    """Root-mean-square norm (Zhang & Sennrich 2019).

    Attributes:
        ops: The backend.
        weight: ``[E]``.
        eps: Added to the mean square.
    """

    ops: Backend[Tensor]
    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise ``x``."""
        return self.ops.rms_norm(x, self.weight, self.eps)

    def after_add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The sum's norm, and the sum, in one pass."""
        return self.ops.add_rms_norm(x, residual, self.weight, self.eps)


@dataclass(frozen=True)
class LayerNorm:
    """Layer norm (Ba et al. 2016).

    Attributes:
        ops: The backend.
        weight: ``[E]``.
        bias: ``[E]``, if any.
        eps: Added to the variance.
    """

    ops: Backend[Tensor]
    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise ``x``."""
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps)

    def after_add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The sum's norm, and the sum."""
        total = residual + x
        return self(total), total


@dataclass(frozen=True)
class HeadNorm:
    """Layer norm of each head of ``[T, H, D]`` with that head's own weight.

    Attributes:
        ops: The backend.
        weight: ``[H, D]``.
        ones: ``[D]``: the weight of the norm itself.
        eps: Added to the variance.
    """

    ops: Backend[Tensor]
    weight: Tensor
    ones: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise ``x`` ``[T, H, D]``."""
        return self.ops.layer_norm(x, self.ones, None, self.eps) * self.weight


@dataclass(frozen=True)
class AcrossHeads:
    """A norm over all heads of ``[T, H, D]`` together.

    Attributes:
        norm: Over ``H D`` features.
    """

    norm: Norm

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise ``x`` ``[T, H, D]``."""
        tokens, heads, size = x.shape
        return self.norm(x.reshape(tokens, heads * size)).reshape(tokens, heads, size)
