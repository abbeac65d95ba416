"""Logits of every family equal the reference implementation's, however the tokens are scheduled and paged."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import tiny
from paged import Paged, Schedule
from parity import TOLERANCE, follow
from sagellm_core import models
from sagellm_core.executor.backends import open_backend
from sagellm_core.layers.rotary import resolve
from sagellm_core.loading import open_checkpoint
from sagellm_protocol.devices import DType

LENGTHS = (61, 1, 17, 38)


OURS = [name for name in tiny.RECIPES if name != tiny.LONG_CONTEXT]


@pytest.fixture(scope="module", params=[*OURS, *tiny.FOREIGN])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    model = tiny.make(request.param)
    return model, tiny.save(model, tmp_path_factory.mktemp("model"))


def whole(lengths: tuple[int, ...]) -> Schedule:
    """Each sequence alone, all at once."""
    return [[(sequence, length)] for sequence, length in enumerate(lengths)]


def chunked(lengths: tuple[int, ...]) -> Schedule:
    """Each sequence alone, in chunks that straddle blocks."""
    return [
        [(sequence, min(5, length - start))] for sequence, length in enumerate(lengths) for start in range(0, length, 5)
    ]


def prefill_then_decode(lengths: tuple[int, ...]) -> Schedule:
    """All sequences together: first half of each prompt, then a token a step until each is through."""
    halves = [(length + 1) // 2 for length in lengths]
    steps = [list(enumerate(halves))]
    for step in range(max(lengths)):
        rows = [(sequence, 1) for sequence, length in enumerate(lengths) if halves[sequence] + step < length]
        steps += [rows] if rows else []
    return steps


def mixed(lengths: tuple[int, ...]) -> Schedule:
    """Prefill chunks beside decoded tokens, in an order that changes from step to step."""
    deck = random.Random(1)
    left = list(lengths)
    steps = []
    while any(left):
        rows = []
        for sequence in deck.sample(range(len(left)), len(left)):
            count = min(left[sequence], deck.choice([0, 1, 1, 3, 8]))
            left[sequence] -= count
            rows += [(sequence, count)] if count else []
        steps += [rows] if rows else []
    return steps


# The reference backend computes a query at a time: one schedule, that has all others in it, is enough for it.
MATRIX = [("cpu", whole), ("cpu", chunked), ("cpu", prefill_then_decode), ("cpu", mixed), ("reference", mixed)]


@pytest.mark.parametrize(("backend", "schedule"), MATRIX)
def test_logits_equal_the_reference_implementation(
    saved: tuple[PreTrainedModel, Path], backend: str, schedule: Callable[[tuple[int, ...]], Schedule]
) -> None:
    reference, folder = saved
    ops = open_backend(backend, dtype="float32", threads=1)
    model = models.load(open_checkpoint(folder), ops, DType.FLOAT32)
    deck = random.Random(2)
    prompts = [[deck.randrange(tiny.VOCAB) for _ in range(length)] for length in LENGTHS]
    paged = Paged(model, ops, prompts)
    paged.run(schedule(LENGTHS))
    for prompt, logits in zip(prompts, paged.logits, strict=True):
        with torch.no_grad():
            expected = reference(torch.tensor([prompt])).logits[0].numpy()
        np.testing.assert_allclose(np.stack(logits), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("saved", OURS, indirect=True)
def test_frequencies_equal_the_reference_implementation_to_the_bit(saved: tuple[PreTrainedModel, Path]) -> None:
    reference, folder = saved
    config = open_checkpoint(folder).config
    named: Any = ((name, module) for name, module in reference.named_modules() if "vision" not in name)
    rotary: Any = next((module for name, module in named if name.endswith("rotary_emb")), None)
    if rotary is None:
        assert config.rope is None
        return
    types = getattr(rotary, "layer_types", None) or [""]
    ropes = {
        kind: config.layer_ropes[reference.config.layer_types.index(kind)] if kind else config.rope for kind in types
    }
    for kind, rope in ropes.items():
        assert rope is not None
        spec, prefix = resolve(rope), f"{kind}_" if kind else ""
        theirs = getattr(rotary, f"{prefix}inv_freq").numpy()
        np.testing.assert_array_equal(np.asarray(spec.inv_freq, dtype=np.float32), theirs)
        assert spec.attention_factor == getattr(rotary, f"{prefix}attention_scaling")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_greedy_tokens_equal_the_reference_implementation(saved: tuple[PreTrainedModel, Path], backend: str) -> None:
    reference, folder = saved
    ops = open_backend(backend, dtype="float32", threads=1)
    assert follow(reference, models.load(open_checkpoint(folder), ops, DType.FLOAT32), ops).greedy_equal


def test_every_architecture_is_compared() -> None:
    assert set(models.ARCHITECTURES) == set(tiny.USUAL)


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """A model with two sets of frequencies, one for contexts of up to 24 tokens."""
    model = tiny.make(tiny.LONG_CONTEXT)
    return model, tiny.save(model, tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("context", "lengths"), [(None, (61, 38, 25)), (24, (24, 1, 17))])
def test_logits_equal_the_reference_implementation_within_the_original_context_and_beyond(
    phi3: tuple[PreTrainedModel, Path], context: int | None, lengths: tuple[int, ...]
) -> None:
    reference, folder = phi3
    ops = open_backend("cpu", dtype="float32", threads=1)
    model = models.load(open_checkpoint(folder, context=context), ops, DType.FLOAT32)
    deck = random.Random(2)
    prompts = [[deck.randrange(tiny.VOCAB) for _ in range(length)] for length in lengths]
    paged = Paged(model, ops, prompts)
    paged.run(mixed(lengths))
    for prompt, logits in zip(prompts, paged.logits, strict=True):
        with torch.no_grad():
            expected = reference(torch.tensor([prompt])).logits[0].numpy()
        np.testing.assert_allclose(np.stack(logits), expected, rtol=0, atol=TOLERANCE)


def test_keys_of_a_long_context_are_not_taken_for_those_of_a_short_one(phi3: tuple[PreTrainedModel, Path]) -> None:
    _, folder = phi3
    assert open_checkpoint(folder, context=24).key == open_checkpoint(folder, context=12).key
    assert open_checkpoint(folder, context=24).key != open_checkpoint(folder).key
