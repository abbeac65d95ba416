"""Multi-head latent attention: of each token one short vector is kept, out of which every head reads keys and values.

The matrices that would expand it are moved to the other side (DeepSeek V2, section 2.1): queries go through the one of
keys before they meet what is kept, and what is attended to goes through the one of values afterwards. Knows nothing of
masks or block tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sagellm_core.loading.config import ModelConfig
from sagellm_protocol.backend import AttentionPlan, Backend, KVCache, KVSpec, RopeSpec

from .linear import Linear, Sharding, Tensor
from .norm import Norm
from .weights import Packer

_EPS = 1e-6
"""Of the norms of squeezed vectors: the reference class's own default, whatever the configuration says of others."""


@dataclass(frozen=True)
class LatentAttention:
    """Self-attention of one layer.

    Dimensions of a head: N without position, R with it, Dv of its value; C kept of keys and values together.

    Attributes:
        ops: The backend.
        query: Projections of queries one after another, with the norm between them: ``E`` to ``Hq (N + R)``.
        query_norm: Norm between the two, if there are two.
        squeeze: ``E`` to ``C + R``.
        squeeze_norm: Norm of the C.
        keys: Of each head, ``[Hq, N, C]``.
        values: Of each head, ``[Hq, C, Dv]``.
        out: ``Hq Dv`` to ``E``.
        num_heads: Hq.
        plain_dim: N.
        spec: What this layer keeps of each token.
        layer: Which layer of the cache is its own.
        scale: Multiplies the scores.
        rope: Rotary embedding of the R.
    """

    ops: Backend[Tensor]
    query: Sequence[Linear]
    query_norm: Norm | None
    squeeze: Linear
    squeeze_norm: Norm
    keys: Tensor
    values: Tensor
    out: Linear
    num_heads: int
    plain_dim: int
    spec: KVSpec
    layer: int
    scale: float
    rope: RopeSpec

    def __call__(self, x: Tensor, positions: Tensor, cache: KVCache, plan: AttentionPlan) -> Tensor:
        """Attend from ``x`` ``[T, E]`` at ``positions`` ``[T]``, writing what is kept to the cache: ``[T, E]``."""
        tokens, heads, kept = x.shape[0], self.num_heads, self.spec.latent_dim
        q = self.query[0](x)
        if self.query_norm is not None:
            q = self.query[1](self.query_norm(q))
        q = q.reshape(tokens, heads, -1)  # [T, Hq, N + R]
        squeezed = self.squeeze(x)  # [T, C + R]
        latent = self.squeeze_norm(squeezed[:, :kept]).reshape(tokens, 1, kept)
        turned = squeezed[:, kept:].reshape(tokens, 1, -1)
        q_turned, k_turned = self.ops.rope(q[:, :, self.plain_dim :], turned, positions, self.rope)
        asked = self.ops.headwise(q[:, :, : self.plain_dim], self.keys)  # [T, Hq, C]
        attended = self.ops.attention(
            self.ops.concat([asked, q_turned], 2),
            self.ops.concat([latent, k_turned], 2),
            None,
            cache,
            self.layer,
            plan,
            scale=self.scale,
        )  # [T, Hq, C]
        return self.out(self.ops.headwise(attended, self.values).reshape(tokens, -1))


def build_latent_attention(
    pack: Packer, config: ModelConfig, name: str, layer: int, rope: RopeSpec | None
) -> LatentAttention:
    """Latent attention out of a module; sizes, biases and scale are the configuration's."""
    latent, heads, width = config.latent, config.num_heads, config.hidden_size
    assert latent is not None, "loading states it for every family with latent attention"
    assert rope is not None, "and that it is rotary"
    assert config.multipliers.attention is not None, "and its scale"
    asked, kept = heads * (latent.plain_dim + latent.rope_dim), latent.rank + latent.rope_dim
    bias, rank = config.attention_out_bias, latent.query_rank
    if rank is None:
        query, query_norm = [pack.linear([f"{name}.q_proj"], (asked,), width, Sharding.COLUMN)], None
    else:
        query = [
            pack.linear([f"{name}.q_a_proj"], (rank,), width, Sharding.REPLICATED, bias=bias),
            pack.linear([f"{name}.q_b_proj"], (asked,), rank, Sharding.COLUMN),
        ]
        query_norm = pack.norm(f"{name}.q_a_layernorm", rank, _EPS)
    expand = pack.tensor(
        f"{name}.kv_b_proj.weight", (heads * (latent.plain_dim + latent.value_dim), latent.rank), Sharding.COLUMN
    ).reshape(heads, latent.plain_dim + latent.value_dim, latent.rank)
    out_columns = heads * latent.value_dim
    return LatentAttention(
        ops=pack.ops,
        query=query,
        query_norm=query_norm,
        squeeze=pack.linear([f"{name}.kv_a_proj_with_mqa"], (kept,), width, Sharding.REPLICATED, bias=bias),
        squeeze_norm=pack.norm(f"{name}.kv_a_layernorm", latent.rank, _EPS),
        keys=expand[:, : latent.plain_dim],
        values=expand[:, latent.plain_dim :].mT,
        out=pack.linear([f"{name}.o_proj"], (width,), out_columns, Sharding.ROW, bias=bias),
        num_heads=heads,
        plain_dim=latent.plain_dim,
        spec=KVSpec(1, kept, 0, latent_dim=latent.rank),
        layer=layer,
        scale=config.multipliers.attention,
        rope=rope,
    )
