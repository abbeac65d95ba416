"""Quantising at load: what blocks hold afterwards, what is left alone, and that every backend does the same."""

from __future__ import annotations

import logging

import gguf
import numpy as np
import pytest
import torch

from sagellm_backend import formats, reference
from sagellm_backend.cpu import CpuBackend, native
from sagellm_backend.formats import quantize
from sagellm_protocol.backend import RawWeight, WeightFormat, WeightUse
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError
from weights import f32

kernels = native.load()
TARGETS = list(quantize.ENCODERS)


def plain(values: np.ndarray) -> RawWeight:
    return RawWeight("w", "f32", values.shape, np.ascontiguousarray(values, np.float32).tobytes())


def quantized(raw: RawWeight, target: WeightFormat) -> RawWeight:
    return quantize.quantize(raw, WeightFormat(raw.format), target)


def values(raw: RawWeight) -> np.ndarray:
    return formats.expand(raw, WeightFormat(raw.format), torch.float32).numpy()


def noise(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("target", TARGETS)
def test_ggufs_own_decoder_reads_the_blocks(target):
    made = quantized(f32(5, 96, seed=1), target)
    rows = formats.raw_rows(made)
    assert (made.name, made.format, made.shape) == ("w", target.value, (5, 96))
    theirs = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[target.name])
    np.testing.assert_array_equal(values(made), theirs)


@pytest.mark.parametrize(("target", "most"), [(WeightFormat.Q8_0, 0.0055), (WeightFormat.Q4_1, 0.0735)])
def test_little_of_normal_values_is_lost(target, most):
    raw = f32(64, 1024, scale=0.02)
    assert noise(values(quantized(raw, target)), values(raw)) < most


def test_four_bits_lose_less_than_a_grid_from_the_smallest_to_the_largest_value():
    raw = f32(64, 1024, scale=0.02)
    ggufs = gguf.quants.quantize(values(raw), gguf.GGMLQuantizationType.Q4_1)
    theirs = noise(gguf.quants.dequantize(ggufs, gguf.GGMLQuantizationType.Q4_1), values(raw))
    assert noise(values(quantized(raw, WeightFormat.Q4_1)), values(raw)) < 0.94 * theirs


def test_no_element_is_further_from_its_value_than_half_a_step_of_eight_bits():
    raw = plain(np.random.default_rng(0).standard_t(2, (32, 320)) * 0.01)
    blocks = values(raw).reshape(-1, 32)
    step = np.abs(blocks).max(1, keepdims=True) / 127
    error = np.abs(values(quantized(raw, WeightFormat.Q8_0)).reshape(-1, 32) - blocks)
    # The scale itself is rounded to float16, and its rounding is met 127 times by the largest.
    assert (error <= step * (0.5 + 127 * 2**-11) + 127 * 2**-25).all()


@pytest.mark.parametrize("target", TARGETS)
def test_values_that_lie_on_a_grid_already_are_kept(target):
    dice = np.random.default_rng(3)
    scale, offset = dice.integers(1, 9, (40, 1)) / 64, dice.integers(-20, 1, (40, 1)) / 16
    if target is WeightFormat.Q8_0:
        grid = scale * np.concatenate([dice.integers(-127, 128, (40, 31)), np.full((40, 1), 127)], 1)
    else:
        grid = scale * np.concatenate([dice.integers(0, 16, (40, 30)), np.full((40, 2), [0, 15])], 1) + offset
    raw = plain(grid)
    np.testing.assert_array_equal(values(quantized(raw, target)), values(raw))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("value", [0.0, 0.25, -3.0, 1e-9])
def test_a_block_of_one_value_is_that_value(target, value):
    got = values(quantized(plain(np.full((1, 64), value)), target))
    np.testing.assert_allclose(got, value, rtol=2**-10, atol=1e-7)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 1e30])
def test_values_that_no_block_can_hold_are_refused(target, value):
    bad = np.ones((40, 64), np.float32)
    bad[33, 7] = value
    with pytest.raises(SageLLMError, match=f"w holds values that {target.value} cannot") as refusal:
        quantized(plain(bad), target)
    assert refusal.value.code is ErrorCode.INVALID_REQUEST
    assert refusal.value.param == "quantization"


@pytest.mark.parametrize("target", TARGETS)
def test_pieces_and_threads_do_not_change_the_bytes(target, monkeypatch):
    raw = f32(37, 96)
    whole = bytes(quantized(raw, target).data)
    monkeypatch.setattr(formats, "_CHUNK_ELEMENTS", 300)
    monkeypatch.setattr(quantize, "_AT_ONCE", 4)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert bytes(quantized(raw, target).data) == whole
    finally:
        torch.set_num_threads(before)


Q = WeightFormat


@pytest.mark.parametrize(
    ("quantization", "stored", "after"),
    [
        ("int8", [Q.F32], [Q.Q8_0]),
        ("int4", [Q.BF16], [Q.Q4_1]),
        ("int8", [Q.Q4_1], [Q.Q4_1]),
        ("int8", [Q.Q8_0], [Q.Q8_0]),
        ("int4", [Q.Q8_0], [Q.Q4_1]),
        ("int4", [Q.Q4_0], [Q.Q4_0]),
        ("int8", [Q.Q4_0, Q.F16], [Q.Q8_0, Q.Q8_0]),
        ("int4", [Q.Q4_1, Q.F16], [Q.Q4_1, Q.Q4_1]),
        ("int4", [Q.Q4_0, Q.F16], [Q.Q4_1, Q.Q4_1]),
        ("int8", [Q.Q5_1], [Q.Q8_0]),  # not kept as stored: it would be expanded
    ],
)
def test_what_is_stored_in_no_more_bits_stays_and_parts_end_up_alike(quantization, stored, after):
    source = {Q.F32: Q.F32, Q.F16: Q.F16, Q.BF16: Q.BF16}
    parts = []
    for kind in stored:
        numbers = f32(4, 64, scale=0.1)
        if kind in source:
            data = values(numbers)
            as_kind = {Q.F32: torch.float32, Q.F16: torch.float16, Q.BF16: torch.bfloat16}[kind]
            data = torch.from_numpy(data.copy()).to(as_kind).view(torch.uint8).numpy().tobytes()
        else:
            data = gguf.quants.quantize(values(numbers), gguf.GGMLQuantizationType[kind.name]).tobytes()
        parts.append((RawWeight(kind.value, kind.value, (4, 64), data), kind))
    made = quantize.quantized(parts, quantization, kept=(Q.Q4_0, Q.Q4_1, Q.Q8_0))
    assert [kind for _, kind in made] == after
    assert [raw.format for raw, _ in made] == [kind.value for kind in after]
    for (before, kind), (raw, now) in zip(parts, made, strict=True):
        assert (raw is before) is (now is kind)
        assert noise(values(raw), values(before)) < 0.08


def test_rows_that_are_no_whole_blocks_are_left_and_reported_once(caplog):
    ops, x = reference.create(threads=1), torch.randn(2, 37)
    with caplog.at_level(logging.WARNING):
        for seed in (1, 2):
            weight = ops.pack_weight([f32(5, 37, seed=seed)], DType.FLOAT32, quantization="int4")
            truth = x @ torch.from_numpy(values(f32(5, 37, seed=seed)).copy()).T
            torch.testing.assert_close(ops.linear(x, weight), truth)
    assert [record.getMessage() for record in caplog.records] == [
        "w is not quantised to int4 but left as it is: its rows are no whole blocks of 32 (said once)"
    ]


def test_what_is_small_already_is_reported_once(caplog):
    ops = reference.create(threads=1)
    small = quantized(f32(4, 64), WeightFormat.Q4_1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ops.pack_weight([small], DType.FLOAT32, quantization="int8")
    assert [record.getMessage() for record in caplog.records] == [
        "w is not quantised to int8 but left as it is: stored as q4_1, it is no larger already (said once)"
    ]


@pytest.mark.parametrize("name", quantize.QUANTIZATIONS)
def test_without_kernels_or_in_float32_values_are_the_same_and_a_warning_says_what_is_not_saved(name, caplog):
    raw, x = f32(40, 64), torch.randn(3, 64)
    truth = reference.create(threads=1)
    want = truth.linear(x, truth.pack_weight([raw], DType.FLOAT32, quantization=name))
    ops = CpuBackend(DType.FLOAT32, kernels)
    with caplog.at_level(logging.WARNING):
        packed = ops.pack_weight([raw], DType.FLOAT32, quantization=name)
    torch.testing.assert_close(ops.linear(x, packed), want, rtol=1e-5, atol=1e-5)
    assert f"{name} saves no memory and no time" in caplog.text
    assert packed.nbytes >= 40 * 64 * 4


@pytest.mark.skipif(kernels is None, reason="the package was built without native kernels")
@pytest.mark.parametrize(("name", "bytes_a_block"), [("int8", 34), ("int4", 20)])
@pytest.mark.parametrize("use", list(WeightUse))
def test_kernels_keep_what_was_quantised_and_multiply_it(name, bytes_a_block, use, caplog):
    ops, truth = CpuBackend(DType.BFLOAT16, kernels), reference.create(threads=1)
    parts = [f32(48, 64, seed=1), f32(16, 64, seed=2)]
    with caplog.at_level(logging.WARNING):
        packed = ops.pack_weight(parts, DType.BFLOAT16, use=use, quantization=name)
    assert not caplog.records
    assert packed.nbytes == 64 * 2 * bytes_a_block
    want = truth.pack_weight(parts, DType.FLOAT32, quantization=name).matrix
    ids = torch.tensor([0, 63, 17])
    assert torch.equal(ops.embedding(ids, packed, DType.FLOAT32), want[ids])
    x = torch.randn(3, 64)
    torch.testing.assert_close(ops.linear(x, packed), x @ want.T, rtol=2e-2, atol=0.2)


def test_a_quantisation_that_is_not_offered_is_refused_with_those_that_are():
    for ops in (reference.create(threads=1), CpuBackend(DType.FLOAT32)):
        assert ops.capabilities().quantizations == ("int8", "int4")
        with pytest.raises(SageLLMError, match=r"'int3'.*offers int8, int4") as refusal:
            ops.pack_weight([f32(2, 32)], DType.FLOAT32, quantization="int3")
        assert refusal.value.code is ErrorCode.UNSUPPORTED
        assert refusal.value.param == "quantization"
