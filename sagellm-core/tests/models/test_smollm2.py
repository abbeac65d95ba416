"""The default model, out of the store: its logits equal the reference implementation's on the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel

from paged import Paged
from sagellm_core import models
from sagellm_core.executor.backends import open_backend
from sagellm_core.loading import open_checkpoint
from sagellm_core.store import DEFAULT_MODEL, pull
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

# "The capital of France is" and "def fibonacci(n):", as the model's own tokeniser has them.
PROMPTS = ((504, 3575, 282, 4649, 314), (1604, 3635, 26495, 1073, 24, 94, 724))


@pytest.fixture(scope="module")
def file() -> Path:
    try:
        return pull(DEFAULT_MODEL).path
    except SageLLMError as error:
        if error.code is not ErrorCode.UNAVAILABLE:
            raise
        pytest.skip(f"no source of the model can be reached: {error.message}")


@pytest.fixture(scope="module")
def reference(file: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    return model.eval()


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_logits_of_the_default_model_equal_the_reference_implementation(
    name: str, file: Path, reference: PreTrainedModel
) -> None:
    ops: Backend[Any] = open_backend(name, dtype="float32", threads=1)
    model = models.load(open_checkpoint(file), ops, DType.FLOAT32)
    paged = Paged(model, ops, PROMPTS)
    paged.run([[(0, 3), (1, 7)], [(0, 1)], [(0, 1)]])
    for prompt, logits in zip(PROMPTS, paged.logits, strict=True):
        with torch.no_grad():
            expected = reference(torch.tensor([prompt])).logits[0].numpy()
        np.testing.assert_allclose(np.stack(logits), expected, rtol=0, atol=2e-4)
