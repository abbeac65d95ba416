"""With an adapter beside its weights a model gives what it gives with the adapter merged into them by peft."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from lora import save_adapter
from paged import Paged
from parity import TOLERANCE
from sagellm_core import models
from sagellm_core.adapters.base import AdapterRef
from sagellm_core.adapters.store import AdapterStore
from sagellm_core.executor.backends import open_backend
from sagellm_core.loading import open_checkpoint
from sagellm_core.models.base import AdaptableModel
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
DENSE = (
    "llama, biases",
    "cohere, norms of heads, biases",
    "falcon, groups and two norms",
    "gemma2",
    "gpt2",
    "gpt_neox",
    "granite",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm",
)
MIXTURES = {
    "mixtral": ATTENTION,
    "qwen2_moe": ATTENTION,
    "gpt_oss": ATTENTION,
    "deepseek_v3": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"],
}
CASES = dict.fromkeys(DENSE, "all-linear") | MIXTURES


def logits_with_adapter(
    ops: Backend[Any], base: Path, adapter: Path, prompts: list[list[int]], adapted: int
) -> list[np.typing.NDArray[np.float32]]:
    """Of some prompts computed together, the last ``adapted`` of them through the adapter."""
    model = models.load(open_checkpoint(base), ops, DType.FLOAT32)
    assert isinstance(model, AdaptableModel)
    store = AdapterStore(lambda: model.adapting, ops, DType.FLOAT32, 64)
    key = store.check(str(adapter)).result()
    store.read(AdapterRef(key, str(adapter))).result()
    store.stop()
    plain = len(prompts) - adapted
    paged = Paged(model, ops, prompts)
    tokens = [sum(map(len, prompts[:plain])), sum(map(len, prompts))]
    with model.adapting.step([(*tokens, key)]):
        paged.run([[(index, len(prompt)) for index, prompt in enumerate(prompts)]])
    return [np.stack(rows) for rows in paged.logits]


@pytest.mark.parametrize("recipe", CASES)
def test_logits_equal_those_of_the_model_that_peft_merges(recipe: str, tmp_path: Path) -> None:
    reference = tiny.make(recipe)
    merged = save_adapter(reference, tmp_path / "adapter", target_modules=CASES[recipe])
    base = tiny.save(reference, tmp_path / "base")
    deck = random.Random(3)
    prompts = [[deck.randrange(tiny.VOCAB) for _ in range(length)] for length in (9, 4, 14, 1)]
    ops = open_backend("cpu", dtype="float32", threads=1)
    found = logits_with_adapter(ops, base, tmp_path / "adapter", prompts, adapted=2)
    for index, (prompt, logits) in enumerate(zip(prompts, found, strict=True)):
        model: Any = merged if index >= 2 else reference
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0].numpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True, "r": 9},
        {"rank_pattern": {"q_proj": 2, "model.layers.1.self_attn.v_proj": 7}, "alpha_pattern": {"down_proj": 3}},
        {"target_modules": ["k_proj", "up_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": r".*layers\.1\..*(q|down)_proj"},
    ],
    ids=["rslora", "patterns", "some layers", "by expression"],
)
def test_ranks_scales_and_modules_are_what_the_configuration_says(
    backend: str, config: dict[str, Any], tmp_path: Path
) -> None:
    reference = tiny.make("llama")
    merged: Any = save_adapter(reference, tmp_path / "adapter", **config)
    base = tiny.save(reference, tmp_path / "base")
    ops = open_backend(backend, dtype="float32", threads=1)
    [logits] = logits_with_adapter(ops, base, tmp_path / "adapter", [[5, 9, 77, 3, 18]], adapted=1)
    with torch.no_grad():
        expected = merged(torch.tensor([[5, 9, 77, 3, 18]])).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)
