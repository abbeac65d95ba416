"""Conformance of what encoders need: attention in both directions without a cache, and sums over sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sagellm_protocol.backend import Backend
from sagellm_protocol.devices import DType
from sagellm_protocol.testing import truth

from .base import BackendSuite

_LENGTHS = [
    pytest.param([9], id="one sequence"),
    pytest.param([4, 4, 4], id="sequences of one length"),
    pytest.param([3, 11, 1, 3, 7, 11], id="mixed lengths"),
]


class SegmentConformance(BackendSuite):
    """Sequences lie one after another, and none sees its neighbours."""

    @pytest.mark.parametrize("lengths", _LENGTHS)
    @pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2)], ids=["one head each", "grouped heads"])
    def test_each_token_attends_to_all_of_its_sequence_and_to_no_other(
        self,
        backend: Backend[Any],
        rng: np.random.Generator,
        dtype: DType,
        lengths: Sequence[int],
        heads: int,
        kv_heads: int,
    ) -> None:
        size, tokens = 10, sum(lengths)
        q, k, v = (rng.standard_normal((tokens, number, size)) for number in (heads, kv_heads, kv_heads))
        scale = 1 / math.sqrt(size)
        queries, keys, values = (self.tensor(backend, part, dtype) for part in (q, k, v))
        got = backend.segment_attention(queries, keys, values, backend.plan_segments(lengths), scale=scale)
        cuts = np.cumsum(lengths)[:-1]
        parts = [np.split(self.rounded(backend, part, dtype), cuts) for part in (q, k, v)]
        want = np.concatenate([truth.segment_attention(*each, scale=scale) for each in zip(*parts, strict=True)])
        self.check_tensor(backend, got, want, dtype)

    @pytest.mark.parametrize("lengths", _LENGTHS)
    def test_segment_sum_adds_the_rows_of_each_sequence(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, lengths: Sequence[int]
    ) -> None:
        x = rng.standard_normal((sum(lengths), 7))
        got = backend.segment_sum(self.tensor(backend, x, dtype), lengths)
        rows = np.split(self.rounded(backend, x, dtype), np.cumsum(lengths)[:-1])
        # In float32 whatever the type of the rows, of which a long sequence has thousands.
        self.check_tensor(backend, got, np.stack([part.sum(0) for part in rows]), DType.FLOAT32)
