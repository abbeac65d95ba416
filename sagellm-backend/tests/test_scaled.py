"""Numbers whose scales lie beside them: what they stand for, and what native kernels keep of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sagellm_backend import cpu, formats, reference
from sagellm_backend.cpu import CpuBackend, native
from sagellm_backend.cpu.native.library import AVX2, AVX512, PORTABLE
from sagellm_backend.formats.exact import scaled_as_blocks
from sagellm_protocol.backend import RawWeight, WeightFormat, WeightUse
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.testing import truth

kernels = native.load()
LEVELS = [level for level in (PORTABLE, AVX2, AVX512) if kernels is not None and level <= kernels.level]
INT4, INT8, F8 = WeightFormat.INT4, WeightFormat.INT8, WeightFormat.F8_E4M3


def grid(values, kind=WeightFormat.F16):
    values = np.ascontiguousarray(values, np.float32)
    data = values.astype("<f2") if kind is WeightFormat.F16 else values
    return RawWeight("grid", kind.value, values.shape, data.tobytes())


def weight(kind, numbers, scales, zeros=None, columns=None, scale_kind=WeightFormat.F16):
    """A scaled weight of whole numbers ``[O, E]``."""
    numbers = np.asarray(numbers)
    data = numbers.astype(np.int8).tobytes() if kind is INT8 else (numbers[:, ::2] | numbers[:, 1::2] << 4).astype("u1")
    extra = {"scales": grid(scales, scale_kind)}
    if zeros is not None:
        extra["zeros"] = grid(zeros)
    if columns is not None:
        extra["columns"] = RawWeight("columns", "i32", (len(columns),), np.asarray(columns, "<i4").tobytes())
    return RawWeight("w", kind.value, numbers.shape, data if isinstance(data, bytes) else data.tobytes(), extra)


def values(raw):
    return formats.expand(raw, formats.format_of(raw, "test"), torch.float32)


@pytest.fixture
def dice():
    return np.random.default_rng(3)


@pytest.mark.parametrize("kind", [INT4, INT8, F8])
@pytest.mark.parametrize("columns", [96, 74])
def test_every_number_has_the_value_that_is_meant(kind, columns, dice, monkeypatch):
    monkeypatch.setattr(formats, "_CHUNK_ELEMENTS", 200)
    raw = truth.random_weight(dice, kind, (7, columns))
    np.testing.assert_allclose(values(raw).numpy(), truth.values(raw), rtol=1e-6)


def test_8_bit_floats_are_all_that_there_are():
    codes = np.array([code for code in range(256) if code & 127 != 127], np.uint8)
    raw = RawWeight("w", F8.value, (1, len(codes)), codes.tobytes(), {"scales": grid([[1.0]])})
    assert values(raw)[0].max() == 448
    np.testing.assert_array_equal(values(raw).numpy(), truth.values(raw))


@pytest.mark.parametrize(
    ("kind", "low", "high", "zeros", "target"),
    [
        (INT4, 0, 16, None, WeightFormat.Q4_0),
        (INT4, 0, 16, [8, 8], WeightFormat.Q4_0),
        (INT4, 0, 16, [0, 16], WeightFormat.Q5_0),
        (INT4, 0, 16, [7, 8], WeightFormat.Q5_0),
        (INT8, -128, 128, None, WeightFormat.Q8_0),
        (INT8, -100, 100, [-27, 28], WeightFormat.Q8_0),
    ],
)
def test_integers_become_blocks_of_the_same_values(kind, low, high, zeros, target, dice):
    numbers = dice.integers(low, high, (300, 128))
    raw = weight(kind, numbers, dice.uniform(0.001, 0.1, (300, 2)), zeros and np.tile(zeros, (300, 1)))
    blocks = scaled_as_blocks(raw)
    assert blocks.format == target.value
    assert torch.equal(values(blocks), values(raw))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (weight(INT4, np.ones((2, 96), int), np.ones((2, 2))), "groups of 48"),
        (weight(INT8, np.ones((2, 33), int), np.ones((2, 1))), "rows of 33"),
        (weight(INT4, np.ones((2, 32), int), np.full((2, 1), 1e6), scale_kind=WeightFormat.F32), "a scale too large"),
        (weight(INT4, np.ones((2, 32), int), np.full((2, 1), 1e-7), scale_kind=WeightFormat.F32), "a scale too small"),
        (weight(INT8, np.full((2, 32), -128), np.ones((2, 1)), np.ones((2, 1))), "a difference of -129"),
        (weight(INT4, np.ones((2, 32), int), np.ones((2, 1)), np.full((2, 1), 7.5)), "a zero point between numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_blocks_hold_is_left_as_it_is(raw, why):
    assert scaled_as_blocks(raw) is None


def test_scales_that_float16_rounds_move_values_by_a_2048th_at_most(dice):
    raw = weight(
        INT8, dice.integers(-128, 128, (64, 64)), dice.uniform(1e-4, 0.1, (64, 1)), scale_kind=WeightFormat.F32
    )
    got, want = values(scaled_as_blocks(raw)), values(raw)
    assert not torch.equal(got, want)
    assert ((got - want).abs() <= 2.0**-11 * want.abs()).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "has no scales"),
        ({"scales": grid(np.ones((2, 3)))}, r"of shape \[2, 32\] has scales of shape \[2, 3\]"),
        ({"scales": grid(np.ones((1, 1)))}, r"has scales of shape \[1, 1\]"),
        ({"scales": grid(np.ones((2, 1))), "zeros": grid(np.ones((2, 2)))}, r"zero points of shape \[2, 2\]"),
        (
            {
                "scales": grid(np.ones((2, 1))),
                "columns": RawWeight("c", "i32", (32,), np.zeros(32, "<i4").tobytes()),
            },
            "does not name each of 32 once",
        ),
    ],
)
def test_tensors_beside_that_do_not_fit_are_refused(change, message):
    raw = replace(weight(INT4, np.ones((2, 32), int), np.ones((2, 1))), extra=change)
    with pytest.raises(SageLLMError, match=f"w, stored as int4, .*{message}") as caught:
        reference.create().tensor(raw, DType.FLOAT32)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


@pytest.fixture
def backend():
    if kernels is None:
        pytest.skip("the package was built without native kernels")
    return CpuBackend(DType.BFLOAT16, kernels)


def test_columns_in_one_order_are_kept_in_it(backend, dice):
    order = dice.permutation(96)
    parts = [
        weight(INT4, dice.integers(0, 16, (rows, 96)), dice.uniform(0.01, 0.1, (rows, 3)), None, order)
        for rows in (16, 5)
    ]
    packed = backend.pack_weight(parts, DType.BFLOAT16)
    assert packed.quantized
    assert packed.columns.tolist() == order.tolist()
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
    want = x @ torch.cat([values(part) for part in parts]).T
    assert (packed.linear(x) - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("use", [WeightUse.LINEAR, WeightUse.EMBEDDING_AND_LINEAR])
def test_columns_that_cannot_stay_are_put_in_order(backend, use, dice):
    parts = [
        weight(INT4, dice.integers(0, 16, (16, 96)), dice.uniform(0.01, 0.1, (16, 3)), None, dice.permutation(96))
        for _ in range(2 if use is WeightUse.LINEAR else 1)
    ]
    packed = backend.pack_weight(parts, DType.BFLOAT16, use=use)
    assert not packed.quantized
    want = torch.cat([values(part) for part in parts]).bfloat16()
    assert torch.equal(packed.rows(torch.arange(len(want)), torch.bfloat16), want)


def test_integers_that_are_expanded_are_said_so_once(backend, caplog):
    for _ in range(2):
        backend.pack_weight([weight(INT4, np.ones((16, 96), int), np.ones((16, 2)))], DType.BFLOAT16)
    assert [record.message for record in caplog.records] == [
        "w, stored as int4, is expanded to BF16: it has no blocks of 32 columns under one scale that float16 holds"
        " (said once)"
    ]


def f8(dice, rows, columns, group):
    """Random codes under scales of float32, those of numbers below the normal ones among them."""
    codes = dice.integers(0, 256, (rows, columns), dtype=np.uint8)
    codes[codes & 127 == 127] = 1
    scales = dice.uniform(0.001, 0.1, (rows, columns // group))
    return RawWeight("w", F8.value, (rows, columns), codes.tobytes(), {"scales": grid(scales, WeightFormat.F32)})


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("group", [32, 96, 192])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 29])
def test_8_bit_floats_are_multiplied_as_they_are(level, group, rows, backend, dice):
    parts = [f8(dice, 16, 192, group), f8(dice, 21, 192, 192)]
    bias = RawWeight("b", "f32", (37,), np.linspace(-1, 1, 37, dtype="<f4").tobytes())
    packed = backend.pack_weight(parts, DType.BFLOAT16, bias=[bias])
    assert packed.nbytes == 48 * 192 * 36 / 32 + 37 * 4
    x = torch.randn(rows, 192, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    matrix = torch.cat([values(part) for part in parts])
    want = x @ matrix.T + torch.linspace(-1, 1, 37).bfloat16().float()
    torch.testing.assert_close(packed.linear(x, level), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_8_bit_floats_are_looked_up_as_they_are(backend, dice):
    raw = f8(dice, 21, 96, 96)
    packed = backend.pack_weight([raw], DType.BFLOAT16, use=WeightUse.EMBEDDING_AND_LINEAR)
    assert torch.equal(packed.rows(torch.arange(21), torch.float32), values(raw))


@pytest.mark.parametrize("beside", ["plain numbers", "narrow groups", "a code of no number"])
def test_8_bit_floats_become_bf16_where_they_cannot_stay(beside, backend, dice):
    raw = f8(dice, 16, 96, 48 if beside == "narrow groups" else 96)
    if beside == "a code of no number":
        raw = replace(raw, data=b"\x7f" + raw.data[1:])
    parts = [raw, f8(dice, 16, 96, 96)]
    if beside == "plain numbers":
        parts = [raw, RawWeight("p", "f32", (16, 96), dice.standard_normal((16, 96)).astype("<f4").tobytes())]
    packed = backend.pack_weight(parts, DType.BFLOAT16)
    want = torch.cat([values(part) for part in parts])
    got = packed.rows(torch.arange(32), torch.float32)
    torch.testing.assert_close(got, want, rtol=2.0**-8, atol=0, equal_nan=True)
    second = want[16:] if beside != "plain numbers" else want[16:].bfloat16().float()
    assert torch.equal(got[16:], second)


def test_8_bit_floats_beside_integers_become_bf16(backend, dice):
    integers = weight(INT8, dice.integers(-128, 128, (16, 96)), dice.uniform(0.01, 0.1, (16, 1)))
    packed = backend.pack_weight([f8(dice, 16, 96, 96), integers], DType.BFLOAT16)
    assert packed.nbytes == 32 * 96 * 2


def test_a_table_of_scaled_numbers_is_looked_up_without_expanding_it(dice):
    raw = truth.random_weight(dice, INT4, (64, 96))
    ops = cpu.create(dtype="float32", threads=1)
    table = ops.pack_weight([raw], DType.FLOAT32, use=WeightUse.EMBEDDING)
    assert table.nbytes < 64 * 96 * 2
    rows = ops.embedding(torch.tensor([63, 0, 5]), table, DType.FLOAT32)
    np.testing.assert_allclose(rows.numpy(), truth.values(raw)[[63, 0, 5]], rtol=1e-6)
