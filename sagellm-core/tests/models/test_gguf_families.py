"""A family's GGUF file gives the logits of its safetensors twin, which are the reference implementation's."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gguf_twin
import tiny
from paged import Paged
from sagellm_core import models
from sagellm_core.executor.backends import open_backend
from sagellm_core.loading import open_checkpoint
from sagellm_core.loading.gguf_families import GGUF_FAMILIES
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType

RECIPES = (
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_oss",
    "granite",
    "llama, biases",
    "mixtral",
    "olmo2",
    "phi3, part rotated, window",
    "phi3, long context",
    "qwen2",
    "qwen2_moe",
    "qwen3, tied, biases",
    "qwen3_moe",
    "smollm3",
    "stablelm",
    "stablelm, parallel, norms of heads",
)


@pytest.fixture(scope="module")
def ops() -> Backend[Any]:
    return open_backend("cpu", dtype="float32", threads=1)


def logits(path: Path, ops: Backend[Any]) -> list[Any]:
    deck = random.Random(3)
    prompts = [[deck.randrange(tiny.VOCAB) for _ in range(length)] for length in (29, 40)]
    paged = Paged(models.load(open_checkpoint(path), ops, DType.FLOAT32), ops, prompts)
    paged.run([[(0, 13), (1, 40)], [(0, 16)]])
    return [row for rows in paged.logits for row in rows]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_gguf_file_gives_the_logits_of_its_safetensors_twin(recipe: str, tmp_path: Path, ops: Backend[Any]) -> None:
    model = tiny.make(recipe)
    expected = logits(tiny.save(model, tmp_path / "folder"), ops)
    np.testing.assert_allclose(logits(gguf_twin.write(model, tmp_path / "model.gguf"), ops), expected, atol=1e-5)


def test_every_family_of_gguf_files_has_a_twin() -> None:
    written = {tiny.make(recipe).config.model_type for recipe in RECIPES}
    assert written == {family.model_type for family in GGUF_FAMILIES.values()}
