"""The sizes of a decoder-only transformer, from a Hugging Face ``config.json``, and what follows from them.

Knows nothing of devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sagellm_protocol import ErrorCode, SageLLMError

BITS = {
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "float8": 8,
    "float8_e4m3": 8,
    "fp8": 8,
    "int8": 8,
    "int4": 4,
    "awq": 4,
    "gptq": 4,
}
"""Bits of a weight by the name of its type or quantisation. Scales add a few per cent, which the reserve covers."""


@dataclass(frozen=True)
class ModelShape:
    """What memory is reckoned from."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    """Whether input and output embeddings are one matrix."""
    experts: int = 0
    """0 for a dense model."""
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    """Of experts that every token takes."""
    dtype: str = "bfloat16"

    @property
    def attention_params(self) -> int:
        """Of a layer's queries and outputs, which tensor parallelism always divides."""
        return 2 * self.hidden * self.heads * self.head_dim

    @property
    def kv_params(self) -> int:
        """Of a layer's keys and values."""
        return 2 * self.hidden * self.kv_heads * self.head_dim

    @property
    def mlp_params(self) -> int:
        """Of a layer's gated MLP, or of its experts."""
        if not self.experts:
            return 3 * self.hidden * self.intermediate
        return 3 * self.hidden * (self.experts * self.expert_intermediate + self.shared_intermediate)

    @property
    def small_params(self) -> int:
        """Of a layer's norms and router, which every device holds."""
        return 2 * self.hidden + self.experts * self.hidden

    @property
    def layer_params(self) -> int:
        """Of one layer."""
        return self.attention_params + self.kv_params + self.mlp_params + self.small_params

    @property
    def params(self) -> int:
        """Of all."""
        return self.layers * self.layer_params + (1 if self.tied else 2) * self.vocab * self.hidden + self.hidden

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape:
        """From the content of a ``config.json``.

        Raises:
            SageLLMError: ``INVALID_REQUEST`` naming what it lacks; ``UNSUPPORTED`` for latent attention.
        """
        config = {**config, **(config.get("text_config") or {})}
        if config.get("kv_lora_rank"):
            raise SageLLMError(ErrorCode.UNSUPPORTED, "models with latent attention (kv_lora_rank) are not planned yet")
        needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
        missing = [name for name in needed if not isinstance(config.get(name), int)]
        if missing:
            raise SageLLMError(ErrorCode.INVALID_REQUEST, f"the model's config lacks {', '.join(missing)}", "model")
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        experts = config.get("num_local_experts") or config.get("num_experts") or 0
        inner = config.get("intermediate_size") or 4 * hidden
        return cls(
            layers=config["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            intermediate=inner,
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
            experts=experts,
            expert_intermediate=(config.get("moe_intermediate_size") or inner) if experts else 0,
            shared_intermediate=config.get("shared_expert_intermediate_size") or 0,
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"),
        )


def bytes_of(dtype: str) -> float:
    """Bytes of one number of a type.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` listing the names there are.
    """
    bits = BITS.get(dtype)
    if bits is None:
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"unknown type {dtype!r}; there are {', '.join(BITS)}", "dtype")
    return bits / 8
