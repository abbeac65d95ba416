"""Backends may claim larger units; a model that uses them computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tiny
from claiming import Claiming
from paged import Paged
from sagellm_core import models
from sagellm_core.loading import open_checkpoint
from sagellm_core.loading.base import Checkpoint
from sagellm_protocol.devices import DType

PROMPTS = ([5, 9, 77, 3, 120, 8, 1], [2, 2, 90])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    model = tiny.make("qwen3, window on the last layer")
    return open_checkpoint(tiny.save(model, tmp_path_factory.mktemp("model")))


def logits(checkpoint: Checkpoint, ops: Any) -> list[Any]:
    paged = Paged(models.load(checkpoint, ops, DType.FLOAT32), ops, PROMPTS)
    paged.run([[(0, 4), (1, 2)], [(1, 1), (0, 3)]])
    return [row for rows in paged.logits for row in rows]


@pytest.mark.parametrize(("kind", "calls"), [("mlp", 2 * 3), ("layer", 2 * 3), ("decoder", 2)])
def test_a_claimed_unit_is_called_in_place_of_its_operations(checkpoint: Checkpoint, kind: str, calls: int) -> None:
    claiming = Claiming(kind)
    expected = logits(checkpoint, claiming.ops)
    np.testing.assert_allclose(logits(checkpoint, claiming), expected, atol=1e-5)
    assert claiming.calls == calls
