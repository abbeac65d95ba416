"""Random weights of a model's true shapes: to try sizes, speed and plumbing without a download.

Knows nothing of files. The names and shapes are those of the Llama family; the same seed gives the same bytes, whatever
is read first.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sagellm_protocol.backend import RawWeight, WeightFormat
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .base import Checkpoint
from .config import ModelConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SPREAD = 0.02
"""Standard deviation of the values; what the reference classes initialise with."""
_AT_ONCE = 1 << 20
"""Values made at a time: in float32 they take twice what they take in the end."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


class DummyCheckpoint(Checkpoint):
    """A model of random BF16 weights."""

    def __init__(self, config: ModelConfig, seed: int = 0, path: Path = Path("dummy")) -> None:
        """Describe the weights; they are made when they are read.

        Args:
            config: The model's numbers.
            seed: Decides the values.
            path: Where the configuration came from, for messages.

        Raises:
            SageLLMError: ``UNSUPPORTED`` for a family whose shapes are not known.
        """
        if config.model_type not in FAMILIES:
            raise SageLLMError(
                ErrorCode.UNSUPPORTED,
                f"dummy weights of {config.model_type!r} are not offered; known are {', '.join(FAMILIES)}",
                "load_format",
            )
        self.path = path
        self.config = config
        self._seed = seed
        self._shapes = _shapes(config)

    def names(self) -> Iterable[str]:
        """From the embedding up."""
        return self._shapes.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    @cached_property
    def key(self) -> str:
        """Identity of the weights: what they are made from, as making them all would take a while."""
        made_from = (self._seed, self.config.architecture, *self._shapes.items())
        return hashlib.sha256(repr(made_from).encode()).hexdigest()

    def _read(self, name: str) -> RawWeight:
        import numpy as np

        shape = self._shapes[name]
        stream = hashlib.sha256(f"{self._seed}\0{name}".encode()).digest()
        generator = np.random.Generator(np.random.SFC64(int.from_bytes(stream, "little")))
        data = np.empty(math.prod(shape), np.uint16)
        for start in range(0, data.size, _AT_ONCE):
            piece = data[start : start + _AT_ONCE]
            piece[:] = _bfloat16(generator, piece.size, 1.0 if name.endswith("norm.weight") else 0.0)
        return RawWeight(name, WeightFormat.BF16.value, shape, data.reshape(shape).data)


def _bfloat16(generator: np.random.Generator, count: int, centre: float) -> NDArray[np.uint16]:
    import numpy as np

    values = generator.standard_normal(count, dtype=np.float32)
    values *= _SPREAD
    values += centre
    # Truncation: the values are noise, so rounding would buy nothing.
    return values.view(np.uint16)[1::2]


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    linears = {
        "self_attn.q_proj": (q, hidden, config.qkv_bias),
        "self_attn.k_proj": (kv, hidden, config.qkv_bias),
        "self_attn.v_proj": (kv, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, q, config.attention_out_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for part, (rows, columns, bias) in linears.items():
            shapes[f"{prefix}{part}.weight"] = (rows, columns)
            if bias:
                shapes[f"{prefix}{part}.bias"] = (rows,)
        if config.qk_norm:
            shapes[f"{prefix}self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[f"{prefix}self_attn.k_norm.weight"] = (config.head_dim,)
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes
