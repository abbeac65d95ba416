"""Adapters that peft makes for tiny models, both of their matrices random, and the models they merge to."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel


def save_adapter(reference: PreTrainedModel, folder: Path, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Save an adapter of a model in ``folder``; the model with it merged in."""
    settings = {"r": 4, "lora_alpha": 10, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted: Any = get_peft_model(copy.deepcopy(reference), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(folder)
    merged: PreTrainedModel = adapted.merge_and_unload().eval()
    return merged


def greedy(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    """A model's greedy answer, each token out of the whole text before it."""
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]
