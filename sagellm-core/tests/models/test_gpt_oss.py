"""GPT-OSS as it is published: experts in MXFP4, computed with as they are or from the same values in other forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import tiny
from changed import Changed
from paged import Paged
from parity import TOLERANCE, follow
from sagellm_core import models
from sagellm_core.executor.backends import open_backend
from sagellm_core.loading import open_checkpoint
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

_EXPERTS = "model.layers.{}.mlp.experts.{}_proj"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """A model, and its folder with experts in MXFP4 blocks that hold exactly its values."""
    model = tiny.make("gpt_oss")
    folder = tmp_path_factory.mktemp("model")
    generator = torch.Generator().manual_seed(7)
    packed: dict[str, torch.Tensor] = {}
    for layer, module in enumerate(model.model.layers):
        for part in ("gate_up", "down"):
            parameter = getattr(module.mlp.experts, f"{part}_proj")
            count, columns, rows = parameter.shape
            shape = (count, rows, columns // 32)
            blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
            scales = torch.randint(121, 125, shape, dtype=torch.uint8, generator=generator)
            parameter.data = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            name = _EXPERTS.format(layer, part)
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    tiny.save(model, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in packed:
        tensors.pop(name.removesuffix("_blocks").removesuffix("_scales"), None)
    save_file(tensors | packed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    return model, folder


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_mxfp4_experts_give_the_logits_and_tokens_of_the_reference_implementation(
    published: tuple[PreTrainedModel, Path], backend: str
) -> None:
    reference, folder = published
    ops = open_backend(backend, dtype="float32", threads=1)
    agreement = follow(reference, models.load(open_checkpoint(folder), ops, DType.FLOAT32), ops)
    assert agreement.greedy_equal
    assert agreement.difference < TOLERANCE


def test_mxfp4_experts_take_less_than_half_of_what_they_take_in_bf16_where_kernels_multiply_them(
    published: tuple[PreTrainedModel, Path],
) -> None:
    reference, folder = published
    ops = open_backend("cpu", threads=1)
    if not ops.capabilities().kept_quantized or ops.capabilities().dtypes[0] is not DType.BFLOAT16:
        pytest.skip("needs native kernels and BF16")
    model: Any = models.load(open_checkpoint(folder), ops, DType.BFLOAT16)
    experts = model.layers[0].mlp
    elements = sum(weight.shape[0] * weight.shape[1] for weight in (*experts.gate_up, *experts.down))
    assert sum(weight.nbytes for weight in (*experts.gate_up, *experts.down)) < elements
    prompt = [5, 9, 77, 3, 120, 8, 1, 44, 60, 12, 13, 71]
    paged = Paged(model, ops, [prompt])
    paged.run([[(0, 7)], [(0, 5)]])
    with torch.no_grad():
        expected = reference(torch.tensor([prompt])).logits[0].numpy()
    spread = np.abs(expected).max()
    assert np.abs(np.stack(paged.logits[0]) - expected).max() < 0.1 * spread


@pytest.mark.parametrize("part", ["gate_up_proj_blocks", "gate_up_proj_scales", "down_proj_blocks", "down_proj_bias"])
def test_a_missing_part_of_an_mxfp4_matrix_is_named(published: tuple[PreTrainedModel, Path], part: str) -> None:
    name = f"model.layers.1.mlp.experts.{part}"
    ops = open_backend("reference", dtype="float32", threads=1)
    with pytest.raises(SageLLMError, match=name) as caught:
        models.load(Changed(open_checkpoint(published[1]), {name: None}), ops, DType.FLOAT32)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
