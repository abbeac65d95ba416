"""Backends may claim larger units; a model that uses them computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tiny
from paged import Paged
from sagellm_core import models
from sagellm_core.executor.backends import open_backend
from sagellm_core.loading import open_checkpoint
from sagellm_core.loading.base import Checkpoint
from sagellm_protocol.backend import FusableUnit, RopeSpec
from sagellm_protocol.devices import BackendCapabilities, DType

PROMPTS = ([5, 9, 77, 3, 120, 8, 1], [2, 2, 90])


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
        assert unit.config[f"{at}activation"] == "silu"
        gated = self.ops.silu_mul(self.ops.linear(x, unit.weights[f"{at}gate_up"]))
        return self.ops.linear(gated, unit.weights[f"{at}down"])

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
        assert isinstance(rope, RopeSpec)
        assert cache.specs[layer].window == config[f"{at}window"]
        q, k = ops.rope(q, k, positions, rope)
        attended = ops.attention(q, k, v, cache, layer, plan, scale=config[f"{at}scale"])
        residual = residual + ops.linear(attended.reshape(len(x), -1), unit.weights[f"{at}out"])
        return self.run_mlp(unit, at, ops.rms_norm(residual, vectors[f"{at}post_norm"], eps)), residual

    def run_decoder(self, unit: FusableUnit, _: str, ids: Any, positions: Any, cache: Any, plan: Any) -> Any:
        config = unit.config
        x, residual = self.ops.embedding(ids, unit.weights["embedding"], config["dtype"]), None
        for layer in range(config["num_layers"]):
            x, residual = self.run_layer(unit, f"layers.{layer}.", x, residual, positions, cache, plan)
        return self.ops.rms_norm(x + residual, unit.vectors["norm"], config["eps"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    model = tiny.make("qwen3, window on the last layer")
    return open_checkpoint(tiny.save(model, tmp_path_factory.mktemp("model")))


def logits(checkpoint: Checkpoint, ops: Any) -> list[Any]:
    paged = Paged(models.load(checkpoint, ops, DType.FLOAT32), ops, PROMPTS)
    paged.run([[(0, 4), (1, 2)], [(1, 1), (0, 3)]])
    return [row for rows in paged.logits for row in rows]


@pytest.mark.parametrize(("kind", "calls"), [("mlp", 2 * 3), ("layer", 2 * 3), ("decoder", 2)])
def test_a_claimed_unit_is_called_in_place_of_its_operations(checkpoint: Checkpoint, kind: str, calls: int) -> None:
    claiming = Claiming(kind)
    expected = logits(checkpoint, claiming.ops)
    np.testing.assert_allclose(logits(checkpoint, claiming), expected, atol=1e-5)
    assert claiming.calls == calls
