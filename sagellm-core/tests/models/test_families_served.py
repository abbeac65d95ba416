"""Served, families whose layers differ answer as the reference does: windows, chunks, experts, sinks, latent keys.

Requests run together in a pool too small for all of them: prompts in chunks, preemption, blocks behind a window freed.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import tiny
from core_harness import Harness, assert_all_free
from sagellm_core.executor.backends import open_backend
from sagellm_core.executor.inline import InlineExecutor
from sagellm_core.loading import open_checkpoint

RECIPES = (
    "exaone4",
    "cohere2",
    "deepseek_v3",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_oss",
    "llama4",
    "olmoe",
    "qwen2_moe, some layers, window",
    "smollm3, chosen layers",
)
ANSWER = 12


def continued(reference: PreTrainedModel, prompt: list[int]) -> list[int]:
    """The reference's greedy answer, each token out of the whole text before it."""
    tokens = list(prompt)
    for _ in range(ANSWER):
        with torch.no_grad():
            tokens.append(int(reference(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("recipe", RECIPES)
def test_greedy_answers_under_preemption_equal_the_reference_implementation(recipe: str, tmp_path: Path) -> None:
    reference = tiny.make(recipe)
    checkpoint = open_checkpoint(tiny.save(reference, tmp_path))
    ops = open_backend("cpu", dtype="float32", threads=1)
    executor: Any = InlineExecutor(checkpoint, ops, dtype="float32", kv_cache_dtype="float32")
    harness = Harness(executor, num_blocks=26, max_num_batched_tokens=16, max_model_len=64)
    deck = random.Random(6)
    prompts = [[deck.randrange(tiny.VOCAB) for _ in range(length)] for length in (33, 27, 21)]
    for ticket, prompt in enumerate(prompts):
        harness.add(ticket, prompt, ANSWER, temperature=0)
    harness.run()
    assert sum(ending.preemptions for ending in harness.endings.values()) > 0
    for ticket, prompt in enumerate(prompts):
        assert harness.tokens[ticket, 0] == continued(reference, prompt)
    assert_all_free(harness.core)
