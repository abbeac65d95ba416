"""Conformance of the operations of a transformer's layers."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest

from sagellm_protocol.backend import Backend, FusableUnit, RopeSpec
from sagellm_protocol.devices import DType
from sagellm_protocol.testing import truth

from .base import BackendSuite


class OperationConformance(BackendSuite):
    """Norms, rotary embedding, gates, experts, and moving numbers about."""

    def test_host_numbers_go_to_the_device_and_back(self, backend: Backend[Any], dtype: DType) -> None:
        assert backend.to_host(backend.from_host([5, 0, 2**40 + 1, -3], DType.INT64)) == [5, 0, 2**40 + 1, -3]
        assert backend.to_host(backend.from_host([7, -7], DType.INT32)) == [7, -7]
        assert backend.to_host(backend.from_host([0.5, -2.0, 3.0], dtype)) == [0.5, -2.0, 3.0]
        assert backend.to_host(backend.from_host(array("i", range(4)), DType.INT32)) == [0, 1, 2, 3]

    def test_empty_has_the_shape_asked_for(self, backend: Backend[Any], dtype: DType) -> None:
        assert tuple(backend.empty((3, 1, 5), dtype).shape) == (3, 1, 5)

    def test_concat_joins_along_an_axis(self, backend: Backend[Any], rng: np.random.Generator, dtype: DType) -> None:
        a, b = rng.standard_normal((2, 3)), rng.standard_normal((2, 4))
        got = backend.concat([self.tensor(backend, a, dtype), self.tensor(backend, b, dtype)], 1)
        self.check_tensor(backend, got, np.concatenate([a, b], 1), dtype)

    def test_take_rows_picks_rows(self, backend: Backend[Any], rng: np.random.Generator, dtype: DType) -> None:
        x = rng.standard_normal((5, 3))
        got = backend.take_rows(self.tensor(backend, x, dtype), [4, 0, 0])
        self.check_tensor(backend, got, x[[4, 0, 0]], dtype)

    @pytest.mark.parametrize("shape", [(1, 7), (5, 33), (3, 2, 17)])
    def test_rms_norm(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]
    ) -> None:
        x, weight = 3 * rng.standard_normal(shape), rng.standard_normal(shape[-1])
        got = backend.rms_norm(self.tensor(backend, x, dtype), self.tensor(backend, weight, dtype), 1e-5)
        want = truth.rms_norm(self.rounded(backend, x, dtype), self.rounded(backend, weight, dtype), 1e-5)
        self.check_tensor(backend, got, want, dtype)

    def test_rms_norm_does_not_overflow_where_the_square_would(self, backend: Backend[Any], dtype: DType) -> None:
        x = np.full((1, 16), 1000.0)
        got = backend.rms_norm(self.tensor(backend, x, dtype), self.tensor(backend, np.ones(16), dtype), 1e-5)
        self.check_tensor(backend, got, np.ones((1, 16)), dtype)

    def test_add_rms_norm_returns_norm_and_sum(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType
    ) -> None:
        x, residual, weight = rng.standard_normal((3, 21)), rng.standard_normal((3, 21)), rng.standard_normal(21)
        total = self.rounded(backend, x, dtype) + self.rounded(backend, residual, dtype)
        normed, summed = backend.add_rms_norm(
            self.tensor(backend, x, dtype),
            self.tensor(backend, residual, dtype),
            self.tensor(backend, weight, dtype),
            1e-6,
        )
        self.check_tensor(backend, summed, total, dtype)
        self.check_tensor(backend, normed, truth.rms_norm(total, self.rounded(backend, weight, dtype), 1e-6), dtype)

    @pytest.mark.parametrize("with_bias", [True, False])
    def test_layer_norm(self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, with_bias: bool) -> None:
        x, weight, bias = rng.standard_normal((3, 21)) + 2, rng.standard_normal(21), rng.standard_normal(21)
        got = backend.layer_norm(
            self.tensor(backend, x, dtype),
            self.tensor(backend, weight, dtype),
            self.tensor(backend, bias, dtype) if with_bias else None,
            1e-5,
        )
        want = truth.layer_norm(
            self.rounded(backend, x, dtype),
            self.rounded(backend, weight, dtype),
            self.rounded(backend, bias, dtype) if with_bias else None,
            1e-5,
        )
        self.check_tensor(backend, got, want, dtype)

    @pytest.mark.parametrize("interleaved", [False, True])
    @pytest.mark.parametrize(("head_dim", "rotary_dim"), [(10, 10), (16, 6)])
    @pytest.mark.parametrize("attention_factor", [1.0, 1.3])
    def test_rope(
        self,
        backend: Backend[Any],
        rng: np.random.Generator,
        dtype: DType,
        interleaved: bool,
        head_dim: int,
        rotary_dim: int,
        attention_factor: float,
    ) -> None:
        frequencies = tuple(10000.0 ** (-2 * pair / rotary_dim) for pair in range(rotary_dim // 2))
        spec = RopeSpec(frequencies, rotary_dim, interleaved, attention_factor)
        positions = [0, 1, 2, 977, 4093]
        q, k = rng.standard_normal((5, 6, head_dim)), rng.standard_normal((5, 2, head_dim))
        want = [truth.rope(self.rounded(backend, x, dtype), positions, spec) for x in (q, k)]
        got = backend.rope(
            self.tensor(backend, q, dtype), self.tensor(backend, k, dtype), self.ints(backend, positions), spec
        )
        # In float32 an angle of thousands of radians is itself known to four digits.
        limit = max(self.tolerance[dtype], 5e-4)
        for result, true in zip(got, want, strict=True):
            self.check(self.read(backend, result), true, limit)

    @pytest.mark.parametrize("tokens", [1, 6])
    def test_silu_mul(self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, tokens: int) -> None:
        x = 4 * rng.standard_normal((tokens, 2 * 23))
        want = truth.silu_mul(self.rounded(backend, x, dtype))
        self.check_tensor(backend, backend.silu_mul(self.tensor(backend, x, dtype)), want, dtype)

    @pytest.mark.parametrize("approximate", [True, False])
    def test_gelu_mul(self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, approximate: bool) -> None:
        x = 2 * rng.standard_normal((3, 2 * 23))
        want = truth.gelu_mul(self.rounded(backend, x, dtype), approximate=approximate)
        got = backend.gelu_mul(self.tensor(backend, x, dtype), approximate=approximate)
        self.check_tensor(backend, got, want, dtype)

    @pytest.mark.parametrize("approximate", [True, False])
    def test_gelu(self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, approximate: bool) -> None:
        x = 2 * rng.standard_normal((3, 23))
        want = truth.gelu(self.rounded(backend, x, dtype), approximate=approximate)
        got = backend.gelu(self.tensor(backend, x, dtype), approximate=approximate)
        self.check_tensor(backend, got, want, dtype)

    @pytest.mark.parametrize("cap", [0.5, 30.0])
    def test_softcap(self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, cap: float) -> None:
        x = 20 * rng.standard_normal((3, 23))
        want = truth.softcap(self.rounded(backend, x, dtype), cap)
        self.check_tensor(backend, backend.softcap(self.tensor(backend, x, dtype), cap), want, dtype)

    @pytest.mark.parametrize("renormalize", [True, False])
    @pytest.mark.parametrize("tokens", [1, 7])
    def test_moe(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType, renormalize: bool, tokens: int
    ) -> None:
        gate_up = [rng.standard_normal((2 * 6, 8)) for _ in range(5)]
        down = [rng.standard_normal((8, 6)) for _ in range(5)]
        x, router = rng.standard_normal((tokens, 8)), 2 * rng.standard_normal((tokens, 5))
        got = backend.moe(
            self.tensor(backend, x, dtype),
            self.tensor(backend, router, dtype),
            [backend.pack_weight([self.raw(weight)], dtype) for weight in gate_up],
            [backend.pack_weight([self.raw(weight)], dtype) for weight in down],
            2,
            renormalize,
        )
        want = truth.moe(
            self.rounded(backend, x, dtype),
            self.rounded(backend, router, dtype),
            [self.rounded(backend, weight, dtype) for weight in gate_up],
            [self.rounded(backend, weight, dtype) for weight in down],
            2,
            renormalize=renormalize,
        )
        self.check_tensor(backend, got, want, dtype)

    def test_an_unknown_unit_is_not_fused(self, backend: Backend[Any]) -> None:
        assert backend.fuse(FusableUnit("made-up", {}, {}, {})) is None

    def test_a_fused_mlp_equals_its_operations(
        self, backend: Backend[Any], rng: np.random.Generator, dtype: DType
    ) -> None:
        gate_up, down, x = (
            rng.standard_normal((2 * 22, 32)),
            rng.standard_normal((32, 22)),
            rng.standard_normal((3, 32)),
        )
        weights = {
            "gate_up": backend.pack_weight([self.raw(gate_up[:22]), self.raw(gate_up[22:])], dtype),
            "down": backend.pack_weight([self.raw(down)], dtype),
        }
        fused = backend.fuse(FusableUnit("mlp", {"activation": "silu"}, weights, {}))
        assert fused is None or "mlp" in backend.capabilities().fused_units
        if fused is not None:
            inner = backend.silu_mul(backend.linear(self.tensor(backend, x, dtype), weights["gate_up"]))
            want = self.read(backend, backend.linear(inner, weights["down"]))
            self.check_tensor(backend, fused(self.tensor(backend, x, dtype)), want, dtype)
