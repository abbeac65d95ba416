"""Multi-head attention over the paged cache, with grouped keys and values.

Knows nothing of masks or block tables: those are in the plan, which the backend made.
"""

from __future__ import annotations

from dataclasses import dataclass

from sagellm_core.loading.config import ModelConfig
from sagellm_protocol.backend import AttentionPlan, Backend, KVCache, KVSpec, RopeSpec

from .linear import Linear, RMSNorm, Sharding, Tensor
from .weights import Packer


@dataclass(frozen=True)
class Attention:
    """Self-attention of one layer.

    Attributes:
        ops: The backend.
        qkv: Query, key and value projections, stacked: ``E`` to ``(Hq + 2 Hkv) D``.
        out: Output projection, ``Hq D`` to ``E``.
        num_heads: Hq.
        spec: What this layer keeps of each token.
        layer: Which layer of the cache is its own.
        scale: Multiplies the scores.
        rope: Rotary embedding, if any.
        q_norm, k_norm: Norms of each head's query and key, before rotation, if any.
    """

    ops: Backend[Tensor]
    qkv: Linear
    out: Linear
    num_heads: int
    spec: KVSpec
    layer: int
    scale: float
    rope: RopeSpec | None
    q_norm: RMSNorm | None = None
    k_norm: RMSNorm | None = None

    def __call__(self, x: Tensor, positions: Tensor, cache: KVCache, plan: AttentionPlan) -> Tensor:
        """Attend from ``x`` ``[T, E]`` at ``positions`` ``[T]``, writing keys and values to the cache: ``[T, E]``."""
        heads, values_at = self.num_heads, self.num_heads + self.spec.num_kv_heads
        qkv = self.qkv(x).reshape(-1, values_at + self.spec.num_kv_heads, self.spec.head_dim)  # [T, Hq + 2 Hkv, D]
        q, k, v = qkv[:, :heads], qkv[:, heads:values_at], qkv[:, values_at:]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = self.ops.rope(q, k, positions, self.rope)
        attended = self.ops.attention(q, k, v, cache, self.layer, plan, scale=self.scale)
        return self.out(attended.reshape(-1, heads * self.spec.value_dim))


def build_attention(
    pack: Packer,
    config: ModelConfig,
    name: str,
    layer: int,
    rope: RopeSpec | None,
    *,
    window: int | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm: bool = False,
) -> Attention:
    """Attention out of ``{name}.q_proj`` and its siblings.

    Args:
        pack: Packs the weights.
        config: The model's numbers.
        name: The module.
        layer: Which layer of the cache it takes.
        rope: Rotary embedding, if any.
        window: Tokens back that are visible, or ``None`` for all.
        qkv_bias: Query, key and value projections have biases.
        out_bias: The output projection has one.
        qk_norm: Queries and keys are normalised per head (``q_norm``, ``k_norm``).
    """
    width, dim = config.hidden_size, config.head_dim
    of_q, of_kv = config.num_heads * dim, config.num_kv_heads * dim
    projections = [f"{name}.q_proj", f"{name}.k_proj", f"{name}.v_proj"]
    return Attention(
        ops=pack.ops,
        qkv=pack.linear(projections, (of_q, of_kv, of_kv), width, Sharding.COLUMN, bias=qkv_bias),
        out=pack.linear([f"{name}.o_proj"], (width,), of_q, Sharding.ROW, bias=out_bias),
        num_heads=config.num_heads,
        spec=KVSpec(config.num_kv_heads, dim, dim, window),
        layer=layer,
        scale=dim**-0.5,
        rope=rope,
        q_norm=pack.norm(f"{name}.q_norm", dim, config.norm_eps) if qk_norm else None,
        k_norm=pack.norm(f"{name}.k_norm", dim, config.norm_eps) if qk_norm else None,
    )
