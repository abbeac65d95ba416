"""Checkpoints that were quantised before they were saved compute what their weights stand for, in every layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quantizers as q
import tiny
from paged import Paged
from parity import TOLERANCE, follow
from sagellm_core import models
from sagellm_core.executor.backends import open_backend
from sagellm_core.executor.inline import InlineExecutor
from sagellm_core.loading import open_checkpoint
from sagellm_core.loading.quantized import scheme_of
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

METHODS: Mapping[str, Callable[[], q.Method]] = {
    "gptq": q.gptq,
    "gptq, groups that leave a rest": lambda: q.gptq(size=32),
    "gptq, groups that leave a rest, no index": lambda: q.gptq(size=32, index=False),
    "gptq, symmetric, rows": lambda: q.gptq(size=-1, symmetric=True),
    "gptq, second format": lambda: q.gptq(v2=True),
    "gptq, symmetric, second format": lambda: q.gptq(v2=True, symmetric=True, index=False),
    "gptq, by activation order": lambda: q.gptq(by_activation=True),
    "gptq, 8 bits, by activation order": lambda: q.gptq(8, by_activation=True),
    "gptq, 8 bits, symmetric": lambda: q.gptq(8, symmetric=True),
    "gptq, 2 bits": lambda: q.gptq(2),
    "gptq, some modules not": lambda: q.gptq(left=("0.mlp.up_proj", "1.self_attn.o_proj")),
    "awq": q.awq,
    "awq, groups that leave a rest": lambda: q.awq(size=32),
    "awq, some modules not": lambda: q.awq(left=("self_attn.k_proj",)),
    "fp8, blocks": q.fp8,
    "fp8, large blocks, the head too": lambda: q.fp8((128, 128), head=True),
    "fp8, one scale": lambda: q.fp8(None, inverse=False, beside={"input_scale": torch.tensor([1.5])}),
}
COMPRESSED: Mapping[str, dict[str, Any]] = {
    "packed, 4 bits": {"form": "pack-quantized", "num_bits": 4, "strategy": "group", "group_size": 16},
    "packed, 4 bits, zero points": {
        "form": "pack-quantized", "num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False,
    },
    "packed, 4 bits, out of order": {
        "form": "pack-quantized", "num_bits": 4, "strategy": "group", "group_size": 8, "symmetric": False,
        "ordered": False,
    },
    "packed, 4 bits, rows": {"form": "pack-quantized", "num_bits": 4, "strategy": "channel", "dtype": torch.float32},
    "packed, 3 bits, zero points": {
        "form": "pack-quantized", "num_bits": 3, "strategy": "group", "group_size": 16, "symmetric": False,
    },
    "packed, 8 bits, zero points": {
        "form": "pack-quantized", "num_bits": 8, "strategy": "channel", "symmetric": False, "dtype": torch.float16,
    },
    "integers, rows": {"form": "int-quantized", "num_bits": 8, "strategy": "channel"},
    "integers, zero points": {"form": "int-quantized", "num_bits": 8, "strategy": "channel", "symmetric": False},
    "integers, groups": {"form": "naive-quantized", "num_bits": 8, "strategy": "group", "group_size": 16},
    "integers, one scale": {"form": "int-quantized", "num_bits": 8, "strategy": "tensor", "dtype": torch.float32},
    "floats, one scale": {"form": "float-quantized", "num_bits": 8, "type": "float", "strategy": "tensor"},
    "floats, rows": {"form": "float-quantized", "num_bits": 8, "type": "float", "strategy": "channel"},
    "floats, blocks": {
        "form": "float-quantized", "num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 16],
    },
}  # fmt: skip


def agrees(folder: Path, twin: Any, backend: str = "cpu") -> None:
    ops = open_backend(backend, dtype="float32", threads=1)
    agreement = follow(twin, models.load(open_checkpoint(folder), ops, DType.FLOAT32), ops)
    assert agreement.greedy_equal
    assert agreement.difference < TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_logits_and_tokens_are_those_of_the_weights_that_are_meant(method: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    agrees(folder, q.save(tiny.make("llama"), folder, METHODS[method]()))


@pytest.mark.parametrize("method", COMPRESSED)
def test_logits_and_tokens_are_those_of_what_compressed_tensors_decompresses(method: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    folder = tmp_path / "model"
    agrees(folder, q.save(tiny.make("llama"), folder, q.compressed(**COMPRESSED[method])))


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("qwen2", lambda: q.gptq(8)),
        ("qwen3_moe", q.gptq),
        ("qwen3_moe", q.awq),
        ("qwen3_moe", q.fp8),
        ("qwen2_moe", q.gptq),
        ("mixtral", lambda: q.gptq(by_activation=True)),
        ("phi3", q.awq),
        ("phi3", lambda: q.gptq(by_activation=True)),
        ("gpt2", q.gptq),
        ("gpt_neox", lambda: q.gptq(symmetric=True)),
        ("falcon, groups and two norms", lambda: q.gptq(v2=True)),
        ("gemma3", q.awq),
        ("deepseek_v3", q.fp8),
    ],
)
def test_every_shape_of_layer_takes_them(family: str, method: Callable[[], q.Method], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    agrees(folder, q.save(tiny.make(family), folder, method()), "reference")


# -- files ------------------------------------------------------------------------------------------------------------
def test_the_tensors_of_a_module_may_lie_in_several_files(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    twin = q.save(tiny.make("llama"), folder, q.gptq(by_activation=True), shards=True)
    assert not (folder / "model.safetensors").exists()
    agrees(folder, twin)


@pytest.mark.parametrize(
    ("file", "method", "renamed"),
    [
        ("quantize_config.json", q.gptq, {}),
        ("quant_config.json", q.awq, {"bits": "w_bit", "group_size": "q_group_size"}),
    ],
)
def test_settings_are_found_in_a_file_of_their_own(
    file: str, method: Callable[[], q.Method], renamed: Mapping[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    twin = q.save(tiny.make("llama"), folder, method())
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization_config")
    del settings["quant_method"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / file).write_text(json.dumps({renamed.get(key, key): value for key, value in settings.items()}))
    agrees(folder, twin, "reference")


def test_a_bias_of_zeros_that_a_tool_added_is_left_over_and_another_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    ops = open_backend("reference", dtype="float32", threads=1)
    # Of one element, the projections' sizes being different: what is asked for alone is checked for its size.
    agrees(folder, q.save(tiny.make("llama"), folder, q.gptq(beside={"bias": torch.zeros(1)})), "reference")
    q.save(tiny.make("llama"), folder, q.gptq(beside={"bias": torch.ones(1)}))
    with pytest.raises(SageLLMError, match=r"does not know: model\.layers\.0\.mlp\.down_proj\.bias") as caught:
        models.load(open_checkpoint(folder), ops, DType.FLOAT32)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_a_missing_part_of_a_module_is_named(part: str, tmp_path: Path) -> None:
    q.save(tiny.make("llama"), tmp_path, q.gptq())
    name = f"model.layers.1.mlp.up_proj.{part}"
    q.rewrite(tmp_path, {name: None})
    with pytest.raises(SageLLMError, match=name) as caught:
        models.load(open_checkpoint(tmp_path), open_backend("reference"), DType.FLOAT32)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(
    ("method", "part", "tensor", "message"),
    [
        (q.gptq, "qweight", torch.zeros(6, 72, dtype=torch.int32), "beside scales of .* is no weight of 2, 3, 4, 8"),
        (q.gptq, "qweight", torch.zeros(6, 80), "is f32 of shape .*i32 expected"),
        (q.gptq, "g_idx", torch.full((48,), 7, dtype=torch.int32), "does not place 48 columns in 3 groups"),
        (q.awq, "qzeros", torch.zeros(2, 10, dtype=torch.int32), r"is \[2, 10\] beside scales"),
        (q.awq, "qweight", torch.zeros(50, 10, dtype=torch.int32), r"is \[50, 10\] beside scales"),
        (q.fp8, "weight_scale_inv", torch.zeros(2, 3), r"is \[2, 3\], which does not fit a weight of 80 x 48"),
        (q.fp8, "weight", torch.zeros(80, 48), "is f32 of shape .*f8_e4m3 expected"),
        (q.gptq, "scales", torch.zeros(3, 0), r"is of shape \[3, 0\] and holds nothing"),
        (q.fp8, "weight_scale_inv", torch.zeros(0), r"is of shape \[0\] and holds nothing"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused_by_name(
    method: Callable[[], q.Method], part: str, tensor: torch.Tensor, message: str, tmp_path: Path
) -> None:
    q.save(tiny.make("llama"), tmp_path, method())
    q.rewrite(tmp_path, {f"model.layers.1.mlp.up_proj.{part}": tensor})
    with pytest.raises(SageLLMError, match=rf"model\.layers\.1\.mlp\.up_proj\.{part}.*{message}") as caught:
        models.load(open_checkpoint(tmp_path), open_backend("reference"), DType.FLOAT32)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("stated", ["0x4", "16x16x16", "wide", [16, 0], [16]])
def test_blocks_that_cannot_be_are_refused_with_the_value(stated: Any) -> None:
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": stated}
    settings = {"quant_method": "compressed-tensors", "config_groups": {"all": {"weights": weights}}}
    with pytest.raises(SageLLMError, match=r"all: weights: block_structure is .*rows and columns") as caught:
        scheme_of({"quantization_config": settings}, "config.json")
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert repr(stated) in caught.value.message


def test_what_is_quantised_is_not_quantised_again(tmp_path: Path) -> None:
    q.save(tiny.make("llama"), tmp_path, q.gptq())
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(SageLLMError, match=r"'int8' was asked for, but .* quantised with gptq already") as caught:
        InlineExecutor(checkpoint, open_backend("reference"), quantization="int8")
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_REQUEST, "quantization")


def test_how_weights_are_read_is_part_of_their_identity(tmp_path: Path) -> None:
    keys = set()
    for form in ("gptq", "gptq_v2"):
        q.save(tiny.make("llama"), tmp_path, q.gptq())
        config = json.loads((tmp_path / "config.json").read_text())
        config["quantization_config"]["checkpoint_format"] = form
        (tmp_path / "config.json").write_text(json.dumps(config))
        keys.add(open_checkpoint(tmp_path).key)
    assert len(keys) == 2


# -- kept as small as they are stored ---------------------------------------------------------------------------------
WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
KEPT: Mapping[str, tuple[Callable[[], q.Method], float]] = {
    "gptq": (lambda: q.gptq(size=32), 5.5),
    "gptq, symmetric": (lambda: q.gptq(size=32, symmetric=True), 4.5),
    "gptq, rows, 3 bits": (lambda: q.gptq(3, size=-1, symmetric=True), 4.5),
    "gptq, by activation order": (lambda: q.gptq(size=32, by_activation=True), 5.5),
    "gptq, 8 bits": (lambda: q.gptq(8, size=32, symmetric=True), 8.5),
    "awq": (lambda: q.awq(size=32), 5.5),
    "fp8": (lambda: q.fp8((128, 32)), 9.0),
}


@pytest.mark.parametrize("method", KEPT)
def test_native_kernels_keep_numbers_as_they_are(method: str, tmp_path: Path) -> None:
    ops = open_backend("cpu", threads=1)
    if not ops.capabilities().kept_quantized or ops.capabilities().dtypes[0] is not DType.BFLOAT16:
        pytest.skip("needs native kernels and BF16")
    write, bits = KEPT[method]
    reference = tiny.made(tiny.RECIPES["llama"].of(**WIDE))
    twin = q.save(reference, tmp_path, write())
    model: Any = models.load(open_checkpoint(tmp_path), ops, DType.BFLOAT16)
    layer = model.layers[1]
    packed = [layer.attention.qkv.weight, layer.attention.out.weight, layer.mlp.gate_up.weight, layer.mlp.down.weight]
    elements = sum(weight.shape[0] * weight.shape[1] for weight in packed)
    assert 8 * sum(weight.nbytes for weight in packed) == elements * bits
    prompt = [5, 9, 77, 3, 120, 8, 1, 44, 60, 12, 13, 71]
    paged = Paged(model, ops, [prompt])
    paged.run([[(0, 7)], [(0, 5)]])
    with torch.no_grad():
        expected = twin(torch.tensor([prompt])).logits[0].numpy()
    noise = np.linalg.norm(np.stack(paged.logits[0]) - expected) / np.linalg.norm(expected)
    assert noise < 0.03
