"""Hidden states and scores of every encoder equal the reference implementation's, whatever lies beside an input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import embedders
from changed import Changed
from sagellm_core import models
from sagellm_core.executor.backends import open_backend
from sagellm_core.loading import open_checkpoint
from sagellm_core.models.encoder import Encoder
from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError

INPUTS = [[2, 9, 17, 30, 3], [2, 3], [2, *range(5, 40), 3], [2, 50, 60, 3], [2, 9, 17, 30, 3]]


def load(folder: Path, ops: Backend[Any], dtype: DType = DType.FLOAT32) -> Encoder:
    model = models.load(open_checkpoint(folder), ops, dtype)
    assert isinstance(model, Encoder)
    return model


def encode(
    model: Encoder, ops: Backend[Any], inputs: list[list[int]], second: list[int] | None = None
) -> list[torch.Tensor]:
    """Hidden states of inputs that are read in one step."""
    begins = second or [len(ids) for ids in inputs]
    ids = [token for tokens in inputs for token in tokens]
    positions = [place for tokens in inputs for place in range(len(tokens))]
    types = [int(place >= at) for tokens, at in zip(inputs, begins, strict=True) for place in range(len(tokens))]
    hidden = model.encode(
        *(ops.from_host(values, DType.INT32) for values in (ids, positions, types)),
        ops.plan_segments([len(tokens) for tokens in inputs]),
    )
    return list(hidden.split([len(tokens) for tokens in inputs]))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("architecture", list(embedders.ENCODERS))
def test_hidden_states_equal_the_reference_to_1e_5(architecture: str, backend: str, tmp_path: Path) -> None:
    reference = embedders.make(architecture)
    ops = open_backend(backend, dtype="float32")
    model = load(embedders.save(reference, tmp_path), ops)
    for ids, hidden in zip(INPUTS, encode(model, ops, INPUTS), strict=True):
        with torch.no_grad():
            want = reference(torch.tensor([ids])).last_hidden_state[0]
        np.testing.assert_allclose(hidden.numpy(), want.numpy(), atol=1e-5, rtol=0)


def test_bf16_stays_close(tmp_path: Path) -> None:
    reference = embedders.make("BertModel")
    if DType.BFLOAT16 not in open_backend("cpu").capabilities().dtypes:
        pytest.skip("this processor does not compute in BF16")
    ops = open_backend("cpu", dtype="bfloat16")
    model = load(embedders.save(reference, tmp_path), ops, DType.BFLOAT16)
    for ids, hidden in zip(INPUTS, encode(model, ops, INPUTS), strict=True):
        with torch.no_grad():
            want = reference(torch.tensor([ids])).last_hidden_state[0]
        cosine = torch.nn.functional.cosine_similarity(hidden.float(), want, dim=-1)
        assert cosine.min() > 0.999


@pytest.mark.parametrize("architecture", list(embedders.CROSS_ENCODERS))
def test_the_head_of_a_cross_encoder_equals_the_reference(architecture: str, tmp_path: Path) -> None:
    reference = embedders.make(architecture)
    ops = open_backend("cpu", dtype="float32")
    model = load(embedders.save(reference, tmp_path), ops)
    second = [3, 1, 20, 2, 5]
    hidden = encode(model, ops, INPUTS, second)
    scores = model.score(torch.stack([states[0] for states in hidden]))
    typed = reference.config.type_vocab_size > 1
    for ids, at, score in zip(INPUTS, second, scores, strict=True):
        types = [int(typed and place >= at) for place in range(len(ids))]
        with torch.no_grad():
            want = reference(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits[0]
        np.testing.assert_allclose(score.numpy(), want.numpy(), atol=1e-5, rtol=0)


def test_every_encoder_is_compared() -> None:
    assert set(models.ENCODERS) == {*embedders.ENCODERS, *embedders.CROSS_ENCODERS}


def test_a_tensor_that_an_encoder_does_not_know_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(embedders.save(embedders.make("BertModel"), tmp_path))
    changed = Changed(checkpoint, {"encoder.layer.0.adapter.weight": (48,)})
    with pytest.raises(SageLLMError, match=r"encoder\.layer\.0\.adapter\.weight") as caught:
        models.load(changed, open_backend("reference"), DType.FLOAT32)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
