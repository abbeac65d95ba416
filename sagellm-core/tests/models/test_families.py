"""Every family accounts for each tensor by name, and offers backends only units that describe it truthfully."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from changed import Changed, Renamed
from claiming import Claiming
from paged import Paged
from sagellm_core import models
from sagellm_core.executor.backends import open_backend
from sagellm_core.loading import open_checkpoint
from sagellm_core.loading.base import Checkpoint
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

PLAIN = frozenset(f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Phi3", "Qwen2", "Qwen3", "SmolLM3"))
"""What a decoder unit describes whole: pre-norm layers over unscaled embeddings."""
UNGATED = frozenset({"FalconForCausalLM", "GPT2LMHeadModel", "GPTNeoXForCausalLM"})
EXPERTS_ONLY = frozenset({"GptOssForCausalLM", "MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"})
DESCRIBED = {
    "decoder": PLAIN,
    "layer": PLAIN | {"GemmaForCausalLM"},
    "mlp": frozenset(models.ARCHITECTURES) - UNGATED - EXPERTS_ONLY,
}


@pytest.fixture(scope="module")
def ops() -> Backend[Any]:
    return open_backend("reference", dtype="float32", threads=1)


@pytest.fixture(scope="module", params=sorted(models.ARCHITECTURES))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    model = tiny.make(tiny.USUAL[request.param])
    return open_checkpoint(tiny.save(model, tmp_path_factory.mktemp("model")))


def logits(checkpoint: Checkpoint, ops: Any) -> Any:
    deck = random.Random(4)
    prompts = [[deck.randrange(tiny.VOCAB) for _ in range(length)] for length in (19, 4)]
    paged = Paged(models.load(checkpoint, ops, DType.FLOAT32), ops, prompts)
    paged.run([[(0, 15), (1, 2)], [(1, 2), (0, 4)]])
    return np.stack([row for rows in paged.logits for row in rows])


def test_each_tensor_that_is_missing_is_named(checkpoint: Checkpoint, ops: Backend[Any]) -> None:
    beside = models.ARCHITECTURES[checkpoint.config.architecture].names.beside  # type: ignore[attr-defined]
    for name in checkpoint.names():
        if name.startswith(beside):
            continue
        with pytest.raises(SageLLMError, match=name.replace(".", r"\.")) as caught:
            models.load(Changed(checkpoint, {name: None}), ops, DType.FLOAT32)
        assert caught.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.sinks", "h.0.attn.extra.weight", "lm_head.bias"])
def test_a_tensor_that_the_family_does_not_know_is_named(checkpoint: Checkpoint, ops: Backend[Any], name: str) -> None:
    with pytest.raises(SageLLMError, match=name.replace(".", r"\.")) as caught:
        models.load(Changed(checkpoint, {name: (3,)}), ops, DType.FLOAT32)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("kind", sorted(DESCRIBED))
def test_a_unit_is_offered_only_where_it_describes_the_family_truthfully(
    checkpoint: Checkpoint, ops: Backend[Any], kind: str
) -> None:
    claiming = Claiming(kind)
    np.testing.assert_allclose(logits(checkpoint, claiming), logits(checkpoint, ops), atol=5e-5)
    assert bool(claiming.calls) == (checkpoint.config.architecture in DESCRIBED[kind])


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "GPTNeoXForCausalLM", "LlamaForCausalLM"])
def test_a_checkpoint_of_the_bare_model_is_read_without_its_prefix(
    architecture: str, tmp_path: Path, ops: Backend[Any]
) -> None:
    whole = open_checkpoint(tiny.save(tiny.make(tiny.USUAL[architecture]), tmp_path))
    root = models.ARCHITECTURES[architecture].names.root  # type: ignore[attr-defined]
    bare = Renamed(whole, lambda name: name.removeprefix(f"{root}."))
    np.testing.assert_array_equal(logits(bare, ops), logits(whole, ops))


def test_a_head_beside_tied_embeddings_may_be_left_whatever_it_is_called(tmp_path: Path, ops: Backend[Any]) -> None:
    reference = tiny.make("gpt_neox")
    folder = tiny.save(reference, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert "embed_out.weight" in open_checkpoint(folder).names()
    models.load(open_checkpoint(folder), ops, DType.FLOAT32)


def test_masks_that_gpt2_checkpoints_hold_are_left_where_they_are(tmp_path: Path, ops: Backend[Any]) -> None:
    checkpoint = open_checkpoint(tiny.save(tiny.make("gpt2"), tmp_path))
    masks = {"transformer.h.0.attn.bias": (1, 1, 96, 96), "transformer.h.0.attn.masked_bias": (1,)}
    models.load(Changed(checkpoint, masks), ops, DType.FLOAT32)
