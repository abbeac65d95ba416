"""Conformance of sampling and log-probabilities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from sagellm_protocol.backend import Backend, RowLogprobs, SamplingBatch
from sagellm_protocol.devices import DType
from sagellm_protocol.testing import truth

from .base import BackendSuite, Floats

VOCAB = 41

_NEUTRAL: Mapping[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "uniform": 0.5,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "prompt_tokens": (),
    "output_tokens": (),
    "bias": {},
    "banned": (),
    "allowed": None,
    "logprobs": None,
    "mask": None,
}


def _batch(rows: Sequence[Mapping[str, Any]]) -> SamplingBatch:
    """A batch of rows, each given by what is not neutral in it."""
    return SamplingBatch(**{name: [row.get(name, value) for row in rows] for name, value in _NEUTRAL.items()})


def _mask(*tokens: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The bits of some tokens; those past the vocabulary are set, and mean nothing."""
    bits = np.zeros(-(-VOCAB // 32) * 32, dtype=np.uint8)
    bits[[*tokens, *range(VOCAB, len(bits))]] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


_ROWS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "hot": {"temperature": 1.7},
    "cold": {"temperature": 0.3},
    "greedy": {"temperature": 0.0},
    "top k": {"top_k": 5},
    "top p": {"top_p": 0.6},
    "min p": {"min_p": 0.2},
    "top k, top p and min p": {"top_k": 12, "top_p": 0.8, "min_p": 0.05, "temperature": 0.8},
    "repetition": {"repetition_penalty": 1.8, "prompt_tokens": (1, 2, 3, 3), "output_tokens": (4, 9)},
    "presence": {"presence_penalty": 1.5, "prompt_tokens": (7,), "output_tokens": (4, 4, 9)},
    "frequency": {"frequency_penalty": 0.9, "output_tokens": (4, 4, 4, 9)},
    "bias": {"bias": {3: 4.0, 8: -50.0}},
    "banned": {"banned": (0, 5, 6)},
    "allowed": {"allowed": (2, 30, 40)},
    "allowed, greedy": {"temperature": 0.0, "allowed": (2, 30, 40)},
    "masked": {"mask": _mask(0, 2, 31, 32, 40)},
    "masked, greedy": {"temperature": 0.0, "mask": _mask(31, 33)},
    "masked and allowed": {"mask": _mask(3, 5, 31, 39), "allowed": (3, 31, 32)},
    "masked, biased, top k": {"mask": _mask(*range(0, 41, 2)), "bias": {4: 3.0, 5: 50.0}, "top_k": 4},
    "penalised, greedy": {"temperature": 0.0, "repetition_penalty": 3.0, "output_tokens": tuple(range(0, 41, 2))},
    "banned, greedy": {"temperature": 0.0, "banned": tuple(range(0, 41, 3))},
    "one left": {"top_k": 1},
}


class SamplingConformance(BackendSuite):
    """Draws are decided by a given number, so they can be compared token for token."""

    def _draws(self, shares: Floats) -> list[tuple[float, int]]:
        """Numbers in the middle of each likely token's interval, with that token: none is near a rounding error."""
        ends = np.cumsum(shares)
        return [(float(ends[token] - shares[token] / 2), int(token)) for token in np.flatnonzero(shares > 1e-3)]

    @pytest.mark.parametrize("name", list(_ROWS))
    def test_each_number_draws_its_token(self, backend: Backend[Any], rng: np.random.Generator, name: str) -> None:
        logits = self.rounded(backend, 2 * rng.standard_normal((1, VOCAB)), DType.FLOAT32)
        draws = self._draws(truth.distribution(logits[0], _batch([_ROWS[name]]), 0))
        assert draws
        rows = [{**_ROWS[name], "uniform": uniform} for uniform, _ in draws]
        sampled = backend.sample(self.tensor(backend, np.repeat(logits, len(rows), 0), DType.FLOAT32), _batch(rows))
        assert list(sampled.token_ids) == [token for _, token in draws]

    def test_rows_of_every_kind_are_sampled_together_as_alone(
        self, backend: Backend[Any], rng: np.random.Generator
    ) -> None:
        logits = self.rounded(backend, 2 * rng.standard_normal((len(_ROWS), VOCAB)), DType.FLOAT32)
        rows, want = [], []
        for index, row in enumerate(_ROWS.values()):
            draws = self._draws(truth.distribution(logits[index], _batch([row]), 0))
            uniform, token = draws[index % len(draws)]
            rows.append({**row, "uniform": uniform, "logprobs": index % 3 or None})
            want.append(token)
        sampled = backend.sample(self.tensor(backend, logits, DType.FLOAT32), _batch(rows))
        assert list(sampled.token_ids) == want
        true = truth.logprobs(logits)
        for index, (row, reported) in enumerate(zip(rows, sampled.logprobs, strict=True)):
            assert (reported is None) == (row["logprobs"] is None)
            if reported is not None:
                self._check_logprobs(reported, true[index], want[index], row["logprobs"])

    def test_equal_logits_go_to_the_lowest_token_when_greedy(self, backend: Backend[Any]) -> None:
        logits = np.zeros((1, VOCAB))
        logits[0, [7, 11, 40]] = 3.0
        sampled = backend.sample(self.tensor(backend, logits, DType.FLOAT32), _batch([{"temperature": 0.0}]))
        assert list(sampled.token_ids) == [7]

    @pytest.mark.parametrize("uniform", [0.0, float(np.nextafter(np.float32(1), np.float32(0)))])
    def test_the_ends_of_the_range_draw_a_token_that_is_possible(self, backend: Backend[Any], uniform: float) -> None:
        logits = np.zeros((1, VOCAB))
        sampled = backend.sample(
            self.tensor(backend, logits, DType.FLOAT32), _batch([{"uniform": uniform, "banned": (0, VOCAB - 1)}])
        )
        assert 1 <= sampled.token_ids[0] <= VOCAB - 2

    def test_logprobs_are_those_of_the_model_before_anything_is_applied(
        self, backend: Backend[Any], rng: np.random.Generator
    ) -> None:
        logits = self.rounded(backend, 2 * rng.standard_normal((1, VOCAB)), DType.FLOAT32)
        row = {"temperature": 0.0, "allowed": (17,), "bias": {17: 5.0}, "logprobs": 3}
        reported = backend.sample(self.tensor(backend, logits, DType.FLOAT32), _batch([row])).logprobs[0]
        assert reported is not None
        self._check_logprobs(reported, truth.logprobs(logits)[0], 17, 3)

    def test_logprobs_without_alternatives(self, backend: Backend[Any], rng: np.random.Generator) -> None:
        logits = self.rounded(backend, rng.standard_normal((1, VOCAB)), DType.FLOAT32)
        row = {"temperature": 0.0, "logprobs": 0}
        reported = backend.sample(self.tensor(backend, logits, DType.FLOAT32), _batch([row])).logprobs[0]
        assert reported is not None
        self._check_logprobs(reported, truth.logprobs(logits)[0], int(np.argmax(logits)), 0)

    def test_logprobs_of_given_tokens(self, backend: Backend[Any], rng: np.random.Generator) -> None:
        logits = self.rounded(backend, 2 * rng.standard_normal((4, VOCAB)), DType.FLOAT32)
        tokens = [0, 40, 13, 13]
        rows = backend.logprobs_of(self.tensor(backend, logits, DType.FLOAT32), tokens, 5)
        for row, true, token in zip(rows, truth.logprobs(logits), tokens, strict=True):
            self._check_logprobs(row, true, token, 5)

    def test_a_batch_says_the_same_of_each_row_whatever_is_beside_it(
        self, backend: Backend[Any], rng: np.random.Generator
    ) -> None:
        logits = 2 * rng.standard_normal((9, VOCAB))
        rows = [{"uniform": float(value)} for value in rng.uniform(size=9)]
        together = backend.sample(self.tensor(backend, logits, DType.FLOAT32), _batch(rows)).token_ids
        alone = [
            backend.sample(self.tensor(backend, logits[index : index + 1], DType.FLOAT32), _batch([row])).token_ids[0]
            for index, row in enumerate(rows)
        ]
        assert list(together) == alone

    def _check_logprobs(self, got: RowLogprobs, true: Floats, token: int, top: int) -> None:
        assert got.logprob == pytest.approx(true[token], abs=1e-4)
        assert got.rank == 1 + int((true > true[token]).sum())
        order = np.argsort(-true, kind="stable")[:top]
        assert [other for other, _ in got.top] == order.tolist()
        assert [value for _, value in got.top] == pytest.approx(true[order].tolist(), abs=1e-4)


assert set(_NEUTRAL) == {field.name for field in dataclasses.fields(SamplingBatch)}
