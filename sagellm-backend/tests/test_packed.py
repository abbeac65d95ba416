"""Packed matrices against their blocks expanded: every format and instruction set that runs here, at odd sizes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sagellm_backend import formats
from sagellm_backend.cpu import native
from sagellm_backend.cpu.native.library import AVX2, AVX512, PORTABLE
from sagellm_protocol.backend import BLOCK_ELEMENTS, RawWeight, WeightFormat
from sagellm_protocol.errors import ErrorCode, SageLLMError
from sagellm_protocol.testing import truth
from weights import blocks, f32, raw_weight

kernels = native.load()
pytestmark = pytest.mark.skipif(kernels is None, reason="the package was built without native kernels")
LEVELS = [level for level in (PORTABLE, AVX2, AVX512) if kernels is not None and level <= kernels.level]
KINDS = list(native.KINDS)


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def quantized(x: torch.Tensor) -> torch.Tensor:
    """Activations as the kernels take them: 8 bits by blocks of 32."""
    split = x.float().unflatten(1, (-1, 32))
    largest = split.abs().amax(-1, keepdim=True)
    return (split * (127 / largest)).round().mul(largest / 127).flatten(1)


def pack(*parts: RawWeight, bias: torch.Tensor | None = None) -> native.NativeMatrix:
    stored = [(part, WeightFormat(part.format)) for part in parts]
    return native.NativeMatrix(kernels, native.MatrixStore(), stored, bias)


def expanded(*parts: RawWeight) -> torch.Tensor:
    return torch.cat([formats.expand(part, WeightFormat(part.format), torch.float32) for part in parts])


def width(*kinds: WeightFormat) -> int:
    """A width of which every block is a divisor, and no power of two."""
    return 3 * max(32, *(BLOCK_ELEMENTS[kind][0] for kind in kinds))


def check_product(matrix: native.NativeMatrix, x: torch.Tensor, want: torch.Tensor, level: int | None = None) -> None:
    got = matrix.linear(x, level)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * x.shape[1] ** 0.5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", [*KINDS, WeightFormat.F32])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 6, 7, 11, 101])
def test_linear_multiplies_what_the_blocks_hold(level, kind, rows, threads):
    cols = width(kind)
    parts = [raw_weight(kind, 37, cols, 1), raw_weight(kind, 5, cols, 2)]
    bias = torch.randn(42)
    matrix = pack(*parts, bias=bias)
    assert matrix.quantized is (kind in KINDS)
    x = torch.randn(rows, cols)
    met, weight = (quantized(x), expanded(*parts)) if matrix.quantized else (x.bfloat16(), expanded(*parts).bfloat16())
    for count in (1, 2):
        threads(count)
        check_product(matrix, x, met.float() @ weight.float().T + bias, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_product_alone_and_among_others(level, kind):
    matrix = pack(raw_weight(kind, 56, width(kind)))
    x = torch.randn(29, width(kind))
    together = matrix.linear(x, level)
    for size in (1, 2, 3, 4, 5, 6):
        assert torch.equal(torch.cat([matrix.linear(part, level) for part in x.split(size)]), together)


@pytest.mark.parametrize("level", LEVELS)
def test_linear_takes_rows_that_are_no_whole_blocks_when_weights_are_plain(level):
    x = torch.randn(3, 47)
    weight = f32(33, 47, seed=1)
    check_product(pack(weight), x, x.bfloat16().float() @ expanded(weight).bfloat16().float().T, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("first", "second"), list(itertools.pairwise([*KINDS, KINDS[0]])))
def test_parts_of_different_formats_stay_as_they_are(level, first, second, threads):
    cols = width(first, second)
    parts = [raw_weight(first, 48, cols, 1), raw_weight(second, 16, cols, 2), raw_weight(first, 37, cols, 3)]
    bias = torch.randn(101)
    matrix = pack(*parts, bias=bias)
    assert matrix.quantized
    assert matrix.nbytes < 0.5 * 2 * 101 * cols + bias.nbytes or WeightFormat.Q8_0 in (first, second)
    for rows, count in itertools.product((1, 7, 20), (1, 2)):
        threads(count)
        x = torch.randn(rows, cols)
        check_product(matrix, x, quantized(x) @ expanded(*parts).T + bias, level)
    ids = torch.tensor([0, 47, 48, 63, 64, 100])
    assert torch.equal(matrix.rows(ids, torch.float32), expanded(*parts)[ids])


@pytest.mark.parametrize(
    "parts",
    [
        [blocks(WeightFormat.Q4_0, 17, 64), blocks(WeightFormat.Q8_0, 9, 64)],
        [blocks(WeightFormat.Q4_0, 16, 64), f32(16, 64)],
    ],
    ids=["a format that ends within a group", "plain numbers beside blocks"],
)
def test_what_cannot_be_kept_side_by_side_becomes_bf16(parts):
    matrix = pack(*parts)
    assert not matrix.quantized
    x = torch.randn(2, 64).bfloat16().float()
    check_product(matrix, x, x @ expanded(*parts).bfloat16().float().T)


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_weights_take_hardly_more_bytes_than_their_file(kind):
    raw = blocks(kind, 64, 768)
    # Scales of six bits become bytes.
    more = {WeightFormat.Q3_K: 1 / 8, WeightFormat.Q4_K: 1 / 8, WeightFormat.Q5_K: 1 / 8}
    assert pack(raw).nbytes == len(raw.data) + 64 * 768 * more.get(kind, 0) / 8


@pytest.mark.parametrize("kind", [*KINDS, WeightFormat.F32])
def test_a_table_gives_back_exactly_what_was_packed(kind):
    cols = width(kind)
    raw = raw_weight(kind, 37, cols)
    ids = torch.tensor([0, 36, 16, 15])
    true = torch.from_numpy(truth.dequantize(bytes(memoryview(raw.data)), kind, raw.shape).astype(np.float32))
    true = true if kind in KINDS else true.bfloat16().float()
    assert torch.equal(pack(raw).rows(ids, torch.float32), true[ids])
    with pytest.raises(SageLLMError, match="37") as caught:
        pack(raw).rows(torch.tensor([37]), torch.float32)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
