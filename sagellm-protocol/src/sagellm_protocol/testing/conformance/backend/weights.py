"""Conformance of how weights are brought to a device, and multiplied."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sagellm_protocol.backend import BLOCK_ELEMENTS, AdaptedRows, Backend, LowRank, RawWeight, WeightFormat, WeightUse
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.testing import truth

from .base import BackendSuite

_QUANTIZATION_NOISE = {"int8": 0.02, "int4": 0.15}
"""Largest share of a result's norm that quantising at load may add as noise. Evenly spaced levels over blocks of 32
normal values leave 0.006 and 0.08 of it; activations of 8 bits add about as much as weights of 8 bits do."""


def _columns(format: WeightFormat) -> int:
    """An awkward row length: odd where the format allows it, else three blocks, or two long ones."""
    elements = BLOCK_ELEMENTS[format][0]
    return {1: 37, 2: 96, 32: 96, 256: 512}[elements]


class WeightConformance(BackendSuite):
    """Raw weights, packed weights, tables."""

    def _random(self, rng: np.random.Generator, format: WeightFormat, shape: tuple[int, ...]) -> RawWeight:
        return truth.random_weight(rng, format, shape)

    def _true(self, raw: RawWeight) -> np.typing.NDArray[np.float64]:
        return truth.values(raw)

    def _limit(self, backend: Backend[Any], format: WeightFormat, dtype: DType) -> float:
        kept = format.value in backend.capabilities().kept_quantized
        return max(self.tolerance[dtype], self.quantized_tolerance if kept else 0.0)

    def test_a_raw_weight_becomes_a_tensor_with_its_values(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, weight_format: WeightFormat
    ) -> None:
        raw = self._random(rng, weight_format, (5, _columns(weight_format)))
        tensor = backend.tensor(raw, dtype)
        assert tuple(tensor.shape) == raw.shape
        self.check_tensor(backend, tensor, self._true(raw), dtype)

    @pytest.mark.parametrize("tokens", [1, 2, 5, 33])
    def test_linear_multiplies_by_a_packed_weight(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, weight_format: WeightFormat, tokens: int
    ) -> None:
        raw = self._random(rng, weight_format, (19, _columns(weight_format)))
        x = rng.standard_normal((tokens, raw.shape[1]))
        weight = backend.pack_weight([raw], dtype)
        assert tuple(weight.shape) == raw.shape
        assert weight.nbytes > 0
        got = self.read(backend, backend.linear(self.tensor(backend, x, dtype), weight))
        want = truth.linear(self.rounded(backend, x, dtype), self._true(raw))
        self.check(got, want, self._limit(backend, weight_format, dtype))

    def test_rows_go_through_the_adapters_they_are_given_and_no_others(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType
    ) -> None:
        # Two stacked matrices: one adapter adapts both, with ranks of their own, the other only the second.
        weight, bias, x = rng.standard_normal((14, 37)), rng.standard_normal(14), rng.standard_normal((9, 37))
        packed = backend.pack_weight([self.raw(weight)], dtype, bias=[self.raw(bias)])
        inputs = self.tensor(backend, x, dtype)
        want = truth.linear(self.rounded(backend, x, dtype), weight, bias)
        given = []
        for (begin, end), parts in (((2, 5), ((0, 9, 3), (9, 14, 2))), ((6, 7), ((9, 14, 4),))):
            down, up = [], []
            for first, last, rank in parts:
                down.append(rng.standard_normal((rank, 37)) / 6)
                up.append(rng.standard_normal((last - first, rank)))
                low = self.rounded(backend, x[begin:end], dtype) @ self.rounded(backend, down[-1], dtype).T
                want[begin:end, first:last] += low @ self.rounded(backend, up[-1], dtype).T
            low_rank = LowRank(
                self.tensor(backend, np.concatenate(down), dtype),
                tuple(self.tensor(backend, one, dtype) for one in up),
                tuple(first for first, _, _ in parts),
            )
            given.append(AdaptedRows(begin, end, low_rank))
        got = self.read(backend, backend.linear(inputs, packed, given))
        self.check(got, want, self.tolerance[dtype])
        others = [0, 1, 5, 7, 8]
        assert (got[others] == self.read(backend, backend.linear(inputs, packed))[others]).all()

    def test_parts_of_a_weight_are_stacked_with_their_biases(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType
    ) -> None:
        parts = [rng.standard_normal((rows, 24)) for rows in (9, 3, 3)]
        biases = [rng.standard_normal(len(part)) for part in parts]
        x = rng.standard_normal((4, 24))
        weight = backend.pack_weight(
            [self.raw(part) for part in parts], dtype, bias=[self.raw(bias) for bias in biases]
        )
        assert tuple(weight.shape) == (15, 24)
        got = backend.linear(self.tensor(backend, x, dtype), weight)
        want = truth.linear(self.rounded(backend, x, dtype), np.concatenate(parts), np.concatenate(biases))
        self.check_tensor(backend, got, want, dtype)

    def test_parts_of_a_weight_may_differ_in_format(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType
    ) -> None:
        taken = [format for format in WeightFormat if format.value in backend.capabilities().weight_formats]
        chosen = [WeightFormat.F32, *(format for format in taken if BLOCK_ELEMENTS[format][0] > 1)][:3]
        parts = [self._random(rng, format, (7, 256)) for format in chosen]
        x = rng.standard_normal((3, 256))
        got = self.read(backend, backend.linear(self.tensor(backend, x, dtype), backend.pack_weight(parts, dtype)))
        want = truth.linear(self.rounded(backend, x, dtype), np.concatenate([self._true(part) for part in parts]))
        self.check(got, want, max(self._limit(backend, format, dtype) for format in chosen))

    @pytest.mark.parametrize("alike", [True, False], ids=["one order", "orders of their own"])
    def test_parts_of_a_weight_may_have_columns_out_of_order(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, alike: bool
    ) -> None:
        if WeightFormat.INT4.value not in backend.capabilities().weight_formats:
            pytest.skip("it takes no scaled integers")
        first, second = (self._random(rng, WeightFormat.INT4, (rows, 96)) for rows in (16, 5))
        if alike:
            second = replace(second, extra={**second.extra, "columns": first.extra["columns"]})
        x = rng.standard_normal((3, 96))
        got = self.read(
            backend, backend.linear(self.tensor(backend, x, dtype), backend.pack_weight([first, second], dtype))
        )
        want = truth.linear(self.rounded(backend, x, dtype), np.concatenate([self._true(first), self._true(second)]))
        self.check(got, want, self._limit(backend, WeightFormat.INT4, dtype))

    def test_embedding_looks_rows_up(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, weight_format: WeightFormat
    ) -> None:
        raw = self._random(rng, weight_format, (13, _columns(weight_format)))
        table = backend.pack_weight([raw], dtype, use=WeightUse.EMBEDDING)
        ids = [12, 0, 7, 7, 1]
        got = backend.embedding(self.ints(backend, ids), table, dtype)
        self.check_tensor(backend, got, truth.embedding(ids, self._true(raw)), dtype)

    def test_a_tied_table_is_looked_up_and_multiplied(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, weight_format: WeightFormat
    ) -> None:
        raw = self._random(rng, weight_format, (13, _columns(weight_format)))
        table = backend.pack_weight([raw], dtype, use=WeightUse.EMBEDDING_AND_LINEAR)
        x = rng.standard_normal((2, raw.shape[1]))
        rows = backend.embedding(self.ints(backend, [3, 12]), table, dtype)
        self.check_tensor(backend, rows, truth.embedding([3, 12], self._true(raw)), dtype)
        product = self.read(backend, backend.linear(self.tensor(backend, x, dtype), table))
        want = truth.linear(self.rounded(backend, x, dtype), self._true(raw))
        self.check(product, want, self._limit(backend, weight_format, dtype))

    def test_a_format_it_does_not_take_is_refused_by_name(self, backend: Backend[Any], dtype: DType) -> None:
        raw = RawWeight("model.weight", "made-up", (2, 2), bytes(16))
        with pytest.raises(SageLLMError, match="made-up") as refusal:
            backend.pack_weight([raw], dtype)
        assert refusal.value.code is ErrorCode.UNSUPPORTED

    def test_a_quantisation_it_does_not_offer_is_refused_by_name(self, backend: Backend[Any], dtype: DType) -> None:
        with pytest.raises(SageLLMError, match="made-up") as refusal:
            backend.pack_weight([self.raw(np.ones((4, 32)))], dtype, quantization="made-up")
        assert refusal.value.code is ErrorCode.UNSUPPORTED

    def test_quantising_at_load_keeps_products_and_rows_close(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType
    ) -> None:
        parts, x = [rng.standard_normal((rows, 256)) for rows in (19, 13)], rng.standard_normal((3, 256))
        weight, ids = np.concatenate(parts), [31, 0, 18, 19]
        want = truth.linear(self.rounded(backend, x, dtype), weight)
        for name in backend.capabilities().quantizations:
            raws = [self.raw(part) for part in parts]
            limit = _QUANTIZATION_NOISE.get(name, max(_QUANTIZATION_NOISE.values()))
            packed = backend.pack_weight(raws, dtype, use=WeightUse.EMBEDDING_AND_LINEAR, quantization=name)
            assert tuple(packed.shape) == weight.shape
            product = self.read(backend, backend.linear(self.tensor(backend, x, dtype), packed))
            looked_up = self.read(backend, backend.embedding(self.ints(backend, ids), packed, dtype))
            for got, true in ((product, want), (looked_up, weight[ids])):
                assert got.shape == true.shape
                assert np.linalg.norm(got - true) <= limit * np.linalg.norm(true), name
