"""One decoder layer: norm, attention, norm, MLP, with the residual stream carried beside.

Knows nothing of what stands before or after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sagellm_protocol.backend import AttentionPlan, KVCache

from .attention import Attention
from .linear import RMSNorm, Tensor
from .mlp import GatedMLP


@dataclass(frozen=True)
class DecoderLayer:
    """A pre-norm decoder layer.

    The sum that closes one half is left to the norm that opens the next: a backend adds and normalises in one pass.

    Attributes:
        input_norm: Before attention.
        attention: Self-attention.
        post_norm: Before the MLP.
        mlp: The MLP.
        fused_mlp: A backend's own way of computing it, if it has one.
    """

    input_norm: RMSNorm
    attention: Attention
    post_norm: RMSNorm
    mlp: GatedMLP
    fused_mlp: Callable[[Tensor], Tensor] | None = None

    def __call__(
        self, x: Tensor, residual: Tensor | None, positions: Tensor, cache: KVCache, plan: AttentionPlan
    ) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            x: Output of the layer before, ``[T, E]``, not yet added to the residual stream.
            residual: The residual stream, ``[T, E]``; ``None`` where ``x`` is all there is of it.
            positions: ``[T]``.
            cache: The pool.
            plan: Of this step.

        Returns:
            The layer's output, not yet added, and the residual stream.
        """
        if residual is None:
            normed, residual = self.input_norm(x), x
        else:
            normed, residual = self.input_norm.after_add(x, residual)
        attended = self.attention(normed, positions, cache, plan)
        normed, residual = self.post_norm.after_add(attended, residual)
        return (self.fused_mlp or self.mlp)(normed), residual
