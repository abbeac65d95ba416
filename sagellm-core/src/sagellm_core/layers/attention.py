"""Multi-head attention over the paged cache, with grouped keys and values.

Knows nothing of masks or block tables: those are in the plan, which the backend made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sagellm_core.loading.config import ModelConfig
from sagellm_protocol.backend import AttentionPlan, Backend, KVCache, KVSpec, RopeSpec

from . import raw
from .linear import Linear, Sharding, Tensor
from .weights import Packer

HeadwiseNorm = Callable[[Tensor], Tensor]
"""Normalises the heads of queries or keys, ``[T, H, D]``."""


@dataclass(frozen=True)
class Sharpening:
    """Queries of far positions are sharpened step by step (:class:`~sagellm_core.loading.config.Temperature`).

    Attributes:
        factors: What each step multiplies by, ``[S]``.
        every: Positions of a step.
    """

    factors: Tensor
    every: int

    def __call__(self, q: Tensor, positions: Tensor) -> Tensor:
        """Sharpen ``q`` ``[T, Hq, D]`` at ``positions`` ``[T]``."""
        return q * self.factors[(positions + 1) // self.every].reshape(-1, 1, 1)


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
        softcap: Bounds the scores, if given.
        q_norm, k_norm: Norms of queries and keys, before rotation, if any.
        norm_last: They come after rotation.
        sharpen: Multiplies queries by what follows from their positions, if anything does.
        sinks: For each head a score that takes its share and gives nothing, ``[Hq]``, if any.
    """

    ops: Backend[Tensor]
    qkv: Linear
    out: Linear
    num_heads: int
    spec: KVSpec
    layer: int
    scale: float
    rope: RopeSpec | None
    softcap: float | None = None
    q_norm: HeadwiseNorm | None = None
    k_norm: HeadwiseNorm | None = None
    sinks: Tensor | None = None
    norm_last: bool = False
    sharpen: Sharpening | None = None

    def __call__(self, x: Tensor, positions: Tensor, cache: KVCache, plan: AttentionPlan) -> Tensor:
        """Attend from ``x`` ``[T, E]`` at ``positions`` ``[T]``, writing keys and values to the cache: ``[T, E]``."""
        heads, values_at = self.num_heads, self.num_heads + self.spec.num_kv_heads
        qkv = self.qkv(x).reshape(-1, values_at + self.spec.num_kv_heads, self.spec.head_dim)  # [T, Hq + 2 Hkv, D]
        q, k, v = qkv[:, :heads], qkv[:, heads:values_at], qkv[:, values_at:]
        if not self.norm_last:
            q, k = self._normalized(q, k)
        if self.rope is not None:
            q, k = self.ops.rope(q, k, positions, self.rope)
        if self.norm_last:
            q, k = self._normalized(q, k)
        if self.sharpen is not None:
            q = self.sharpen(q, positions)
        attended = self.ops.attention(
            q, k, v, cache, self.layer, plan, scale=self.scale, softcap=self.softcap, sinks=self.sinks
        )  # [T, Hq, D]
        return self.out(attended.reshape(-1, heads * self.spec.value_dim))

    def _normalized(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (q, k) if self.q_norm is None or self.k_norm is None else (self.q_norm(q), self.k_norm(k))


def build_attention(
    pack: Packer,
    config: ModelConfig,
    name: str,
    layer: int,
    rope: RopeSpec | None,
    *,
    projections: Sequence[str] = ("q_proj", "k_proj", "v_proj"),
    out: str = "o_proj",
    q_norm: HeadwiseNorm | None = None,
    k_norm: HeadwiseNorm | None = None,
    sinks: Tensor | None = None,
    norm_last: bool = False,
    sharpen: Sharpening | None = None,
) -> Attention:
    """Attention out of a module's projections; sizes, biases, window, scale and bound are the configuration's.

    Args:
        pack: Packs the weights.
        config: The model's numbers.
        name: The module.
        layer: Which layer of the cache it takes.
        rope: Rotary embedding, if any.
        projections: Names of query, key and value within the module, or the one name of all three fused.
        out: Name of the output projection.
        q_norm, k_norm: Norms of queries and keys, if any.
        sinks: A score a head that takes its share and gives nothing, if any.
        norm_last: Queries and keys are normalised after rotation.
        sharpen: Multiplies queries by what follows from their positions, if anything does.
    """
    width, dim, heads, kv_heads = config.hidden_size, config.head_dim, config.num_heads, config.num_kv_heads
    rows: tuple[int, ...] = (heads * dim, kv_heads * dim, kv_heads * dim)
    order = None
    if len(projections) == 1:
        rows = (sum(rows),)
        order = raw.by_group(kv_heads, heads // kv_heads, dim) if config.qkv_by_group else None
    names = [f"{name}.{projection}" for projection in projections]
    multiplier, window = config.multipliers.attention, config.windows[layer]
    return Attention(
        ops=pack.ops,
        qkv=pack.linear(names, rows, width, Sharding.COLUMN, bias=config.qkv_bias, order=order),
        out=pack.linear([f"{name}.{out}"], (width,), heads * dim, Sharding.ROW, bias=config.attention_out_bias),
        num_heads=heads,
        spec=KVSpec(kv_heads, dim, dim, window, sinks=sinks is not None, chunked=config.chunked and window is not None),
        layer=layer,
        scale=dim**-0.5 if multiplier is None else multiplier,
        rope=rope,
        softcap=config.multipliers.attention_softcap,
        q_norm=q_norm,
        k_norm=k_norm,
        sinks=sinks,
        norm_last=norm_last,
        sharpen=sharpen,
    )
