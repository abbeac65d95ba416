"""A backend that claims larger units, and computes them out of nothing but what it is told of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagellm_core.executor.backends import open_backend
from sagellm_core.layers.mlp import gate_of
from sagellm_protocol.backend import FusableUnit
from sagellm_protocol.devices import BackendCapabilities


class Claiming:
    """The reference backend, which also claims units of one kind and computes them out of what it is told of them."""

    def __init__(self, kind: str) -> None:
        self.ops: Any = open_backend("reference", dtype="float32", threads=1)
        self.kind = kind
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def capabilities(self) -> BackendCapabilities:
        capabilities: BackendCapabilities = self.ops.capabilities()
        return capabilities.model_copy(update={"fused_units": (self.kind,)})

    def fuse(self, unit: FusableUnit) -> Callable[..., Any] | None:
        assert unit.kind == self.kind
        run: Callable[..., Any] = getattr(self, f"run_{self.kind}")

        def called(*arguments: Any) -> Any:
            self.calls += 1
            return run(unit, "", *arguments)

        return called

    def run_mlp(self, unit: FusableUnit, at: str, x: Any) -> Any:
        gate = gate_of(self.ops, unit.config[f"{at}activation"])
        return self.ops.linear(gate(self.ops.linear(x, unit.weights[f"{at}gate_up"])), unit.weights[f"{at}down"])

    def run_layer(
        self, unit: FusableUnit, at: str, x: Any, residual: Any, positions: Any, cache: Any, plan: Any
    ) -> tuple[Any, Any]:
        ops, config, vectors = self.ops, unit.config, unit.vectors
        heads, kv_heads, eps = config[f"{at}num_heads"], config[f"{at}num_kv_heads"], config[f"{at}eps"]
        residual = x if residual is None else x + residual
        qkv = ops.linear(ops.rms_norm(residual, vectors[f"{at}input_norm"], eps), unit.weights[f"{at}qkv"])
        qkv = qkv.reshape(len(x), -1, config[f"{at}head_dim"])
        q, k, v = qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
        if f"{at}q_norm" in vectors:
            q, k = ops.rms_norm(q, vectors[f"{at}q_norm"], eps), ops.rms_norm(k, vectors[f"{at}k_norm"], eps)
        rope, layer = config[f"{at}rope"], config[f"{at}layer"]
        assert cache.specs[layer].window == config[f"{at}window"]
        if rope is not None:
            q, k = ops.rope(q, k, positions, rope)
        attended = ops.attention(q, k, v, cache, layer, plan, scale=config[f"{at}scale"])
        residual = residual + ops.linear(attended.reshape(len(x), -1), unit.weights[f"{at}out"])
        return self.run_mlp(unit, at, ops.rms_norm(residual, vectors[f"{at}post_norm"], eps)), residual

    def run_decoder(self, unit: FusableUnit, _: str, ids: Any, positions: Any, cache: Any, plan: Any, read: Any) -> Any:
        config = unit.config
        x, residual = self.ops.embedding(ids, unit.weights["embedding"], config["dtype"]), None
        for layer in range(config["num_layers"]):
            x, residual = self.run_layer(unit, f"layers.{layer}.", x, residual, positions, cache, plan)
        hidden = self.ops.rms_norm(x + residual, unit.vectors["norm"], config["eps"])
        return hidden if read is None else self.ops.take_rows(hidden, read)
