"""An encoder's layer: attention in both directions and an MLP, each followed by a norm.

Knows nothing of caches or schedules: a sequence is read whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sagellm_core.loading.config import ModelConfig
from sagellm_protocol.backend import AttentionPlan, Backend

from .linear import Linear, Sharding, Tensor
from .mlp import build_plain_mlp
from .norm import LayerNorm
from .weights import Packer


@dataclass(frozen=True)
class EncoderAttention:
    """Self-attention over a whole sequence.

    Attributes:
        ops: The backend.
        qkv: Query, key and value projections, stacked: ``E`` to ``3 H D``.
        out: Output projection, ``H D`` to ``E``.
        num_heads: H.
        head_dim: D.
    """

    ops: Backend[Tensor]
    qkv: Linear
    out: Linear
    num_heads: int
    head_dim: int

    def __call__(self, x: Tensor, plan: AttentionPlan) -> Tensor:
        """Attend within the plan's sequences: ``[T, E]`` to ``[T, E]``."""
        heads = self.num_heads
        qkv = self.qkv(x).reshape(-1, 3 * heads, self.head_dim)  # [T, 3 H, D]
        q, k, v = qkv[:, :heads], qkv[:, heads : 2 * heads], qkv[:, 2 * heads :]
        attended = self.ops.segment_attention(q, k, v, plan, scale=self.head_dim**-0.5)  # [T, H, D]
        return self.out(attended.reshape(-1, heads * self.head_dim))


@dataclass(frozen=True)
class EncoderLayer:
    """``norm(x + attention(x))``, then ``norm(x + mlp(x))`` (BERT, Devlin et al. 2018).

    Attributes:
        attention: Over each sequence.
        attention_norm: After it.
        mlp: Token by token.
        mlp_norm: After it.
    """

    attention: EncoderAttention
    attention_norm: LayerNorm
    mlp: Callable[[Tensor], Tensor]
    mlp_norm: LayerNorm

    def __call__(self, x: Tensor, plan: AttentionPlan) -> Tensor:
        """``[T, E]`` to ``[T, E]``."""
        x = self.attention_norm(x + self.attention(x, plan))
        return self.mlp_norm(x + self.mlp(x))


def build_encoder_layer(pack: Packer, config: ModelConfig, name: str) -> EncoderLayer:
    """A layer out of the module ``name``, whose parts have BERT's names."""
    width, size = config.hidden_size, config.num_heads * config.head_dim
    own = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
    out = f"{name}.attention.output"
    return EncoderLayer(
        attention=EncoderAttention(
            ops=pack.ops,
            qkv=pack.linear(own, (size,) * 3, width, Sharding.COLUMN, bias=config.qkv_bias),
            out=pack.linear([f"{out}.dense"], (width,), size, Sharding.ROW, bias=config.attention_out_bias),
            num_heads=config.num_heads,
            head_dim=config.head_dim,
        ),
        attention_norm=pack.layer_norm(f"{out}.LayerNorm", width, config.norm_eps),
        mlp=build_plain_mlp(pack, config, name, up="intermediate.dense", down="output.dense"),
        mlp_norm=pack.layer_norm(f"{name}.output.LayerNorm", width, config.norm_eps),
    )
