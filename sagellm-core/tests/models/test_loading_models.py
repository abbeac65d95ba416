"""What models refuse to load, by name; how plug-ins add architectures; what a loaded model says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from changed import Changed
from sagellm_core import models
from sagellm_core.executor.backends import open_backend
from sagellm_core.layers.linear import Sharding
from sagellm_core.loading import open_checkpoint
from sagellm_core.loading.base import Checkpoint
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError


@pytest.fixture(scope="module")
def ops() -> Backend[Any]:
    return open_backend("reference", dtype="float32", threads=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(tiny.save(tiny.make("llama"), tmp_path_factory.mktemp("model")))


def refusal(checkpoint: Checkpoint, ops: Backend[Any]) -> SageLLMError:
    with pytest.raises(SageLLMError) as caught:
        models.load(checkpoint, ops, DType.FLOAT32)
    return caught.value


@pytest.mark.parametrize("architecture", ["NovelForCausalLM", "MambaForCausalLM", "LlamaForSequenceClassification"])
def test_an_architecture_that_nobody_can_run_is_refused_by_name(
    architecture: str, checkpoint: Checkpoint, ops: Backend[Any]
) -> None:
    error = refusal(Changed(checkpoint, {}, architecture=architecture), ops)
    assert error.code is ErrorCode.UNSUPPORTED
    assert architecture in error.message


def test_a_missing_tensor_is_named(checkpoint: Checkpoint, ops: Backend[Any]) -> None:
    error = refusal(Changed(checkpoint, {"model.layers.1.mlp.up_proj.weight": None}), ops)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert "model.layers.1.mlp.up_proj.weight" in error.message


def test_a_tensor_that_the_model_does_not_know_is_named(checkpoint: Checkpoint, ops: Backend[Any]) -> None:
    error = refusal(Changed(checkpoint, {"model.layers.0.self_attn.q_proj.bias": (48,)}), ops)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert "model.layers.0.self_attn.q_proj.bias" in error.message


def test_a_tensor_of_another_shape_is_named_with_both_shapes(checkpoint: Checkpoint, ops: Backend[Any]) -> None:
    error = refusal(Changed(checkpoint, {"model.norm.weight": (47,)}), ops)
    assert error.code is ErrorCode.INVALID_REQUEST
    assert "model.norm.weight" in error.message
    assert "(47,)" in error.message
    assert "(48,)" in error.message


def test_an_unknown_activation_is_refused_by_name(checkpoint: Checkpoint, ops: Backend[Any]) -> None:
    error = refusal(Changed(checkpoint, {}, hidden_act="relu6"), ops)
    assert error.code is ErrorCode.UNSUPPORTED
    assert "relu6" in error.message


def test_a_model_declares_what_each_layer_keeps_and_how_each_weight_is_divided(
    tmp_path: Path, ops: Backend[Any]
) -> None:
    folder = tiny.save(tiny.make("qwen2, window on upper layers"), tmp_path)
    checkpoint = open_checkpoint(folder)
    model = models.load(checkpoint, ops, DType.FLOAT32)
    assert [spec.window for spec in model.kv_specs] == [None, 9, 9]
    assert {(spec.num_kv_heads, spec.head_dim, spec.value_dim) for spec in model.kv_specs} == {(2, 8, 8)}
    assert set(model.sharding) == set(checkpoint.names())
    assert model.sharding["model.layers.0.self_attn.k_proj.weight"] is Sharding.COLUMN
    assert model.sharding["model.layers.0.self_attn.o_proj.weight"] is Sharding.ROW
    assert model.sharding["model.layers.0.input_layernorm.weight"] is Sharding.REPLICATED
    assert model.sharding["lm_head.weight"] is Sharding.VOCAB
    matrices = [checkpoint.weight(name) for name in checkpoint.names()]
    assert model.weight_bytes >= sum(4 * int(np.prod(raw.shape)) for raw in matrices if len(raw.shape) == 2)


PLUGIN = """
class Novel:
    def __init__(self, checkpoint, ops, dtype, quantization):
        self.architecture = checkpoint.config.architecture
"""


def install(monkeypatch: pytest.MonkeyPatch, site: Path, architecture: str) -> None:
    """Put a distribution on the path that brings a model class."""
    info = site / "novel_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: novel-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sagellm.models]\n{architecture} = novel_models:Novel\n")
    (site / "novel_models.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(site)


def test_a_plug_in_adds_an_architecture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Checkpoint, ops: Backend[Any]
) -> None:
    install(monkeypatch, tmp_path, "NovelForCausalLM")
    model: Any = models.load(Changed(checkpoint, {}, architecture="NovelForCausalLM"), ops, DType.FLOAT32)
    assert model.architecture == "NovelForCausalLM"
    assert "NovelForCausalLM" in models.architectures()


def test_a_plug_in_that_claims_a_built_in_architecture_is_a_conflict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Checkpoint, ops: Backend[Any]
) -> None:
    install(monkeypatch, tmp_path, "LlamaForCausalLM")
    error = refusal(checkpoint, ops)
    assert error.code is ErrorCode.CONFLICT
    assert "LlamaForCausalLM" in error.message
