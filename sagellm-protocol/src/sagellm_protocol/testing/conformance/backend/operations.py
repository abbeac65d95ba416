"""Conformance of the operations of a transformer's layers."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest

from sagellm_protocol.backend import Backend, FusableUnit, GateSpec, RopeSpec, RoutingSpec
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

    def test_headwise(self, backend: Backend[Any], rng: np.random.Generator, dtype: DType) -> None:
        x, weight = rng.standard_normal((5, 3, 8)), rng.standard_normal((3, 8, 6))
        got = backend.headwise(self.tensor(backend, x, dtype), self.tensor(backend, weight, dtype))
        want = truth.headwise(self.rounded(backend, x, dtype), self.rounded(backend, weight, dtype))
        self.check_tensor(backend, got, want, dtype)

    @pytest.mark.parametrize("tokens", [1, 7])
    @pytest.mark.parametrize(
        ("spec", "corrected"),
        [
            pytest.param(RoutingSpec(2), False, id="best of all"),
            pytest.param(RoutingSpec(3, renormalize=True, scale=2.5), False, id="shares that sum to the scale"),
            pytest.param(RoutingSpec(1, scoring="sigmoid"), False, id="sigmoid"),
            pytest.param(RoutingSpec(2, groups=4, top_groups=2, scale=0.5), False, id="groups by their best"),
            pytest.param(
                RoutingSpec(3, "sigmoid", True, groups=4, top_groups=2, group_best=2), True, id="groups, corrected"
            ),
        ],
    )
    def test_route(
        self,
        backend: Backend[Any],
        rng: np.random.Generator,
        dtype: DType,
        spec: RoutingSpec,
        corrected: bool,
        tokens: int,
    ) -> None:
        x, router, bias = rng.standard_normal((tokens, 8)), rng.standard_normal((12, 8)), rng.standard_normal(12)
        correction = rng.uniform(0, 1, 12) if corrected else None
        experts, shares = backend.route(
            self.tensor(backend, x, dtype),
            backend.pack_weight([self.raw(router)], DType.FLOAT32, bias=[self.raw(bias)]),
            spec,
            None if correction is None else self.tensor(backend, correction, DType.FLOAT32),
        )
        got = np.zeros((tokens, 12))
        np.put_along_axis(got, self.read(backend, experts).astype(np.int64), self.read(backend, shares), axis=1)
        logits = truth.linear(self.rounded(backend, x, dtype), router, bias)
        self.check(got, truth.route(logits, spec, correction), self.tolerance[DType.FLOAT32])

    @pytest.mark.parametrize("tokens", [1, 7, 40])
    @pytest.mark.parametrize("biased", [False, True])
    @pytest.mark.parametrize(
        "gate",
        [
            GateSpec(),
            GateSpec("gelu"),
            GateSpec("gelu_tanh"),
            pytest.param(GateSpec(slope=1.702, shift=1.0, limit=2.0), id="bounded"),
            pytest.param(GateSpec(shares_first=True), id="shares first"),
        ],
    )
    def test_moe(
        self,
        backend: Backend[Any],
        rng: np.random.Generator,
        dtype: DType,
        gate: GateSpec,
        biased: bool,
        tokens: int,
    ) -> None:
        count, spec = 5, RoutingSpec(2, renormalize=True)
        sizes = {"gate_up": (2 * 6, 8), "down": (8, 6)}
        matrices = {role: [rng.standard_normal(size) for _ in range(count)] for role, size in sizes.items()}
        biases = {role: [rng.standard_normal(size[0]) for _ in range(count)] for role, size in sizes.items()}
        packed = {
            role: [
                backend.pack_weight([self.raw(matrix)], dtype, bias=[self.raw(bias)] if biased else [])
                for matrix, bias in zip(matrices[role], biases[role], strict=True)
            ]
            for role in sizes
        }
        true = {
            role: [
                (self.rounded(backend, matrix, dtype), self.rounded(backend, bias, dtype) if biased else None)
                for matrix, bias in zip(matrices[role], biases[role], strict=True)
            ]
            for role in sizes
        }
        x, router = rng.standard_normal((tokens, 8)), rng.standard_normal((count, 8))
        on_device = self.tensor(backend, x, dtype)
        chosen = backend.route(on_device, backend.pack_weight([self.raw(router)], DType.FLOAT32), spec)
        got = backend.moe(on_device, *chosen, packed["gate_up"], packed["down"], gate)
        shares = truth.route(truth.linear(self.rounded(backend, x, dtype), router), spec)
        want = truth.moe(self.rounded(backend, x, dtype), shares, true["gate_up"], true["down"], gate)
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
