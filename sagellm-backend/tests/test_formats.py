"""Every weight format against the gguf package's own decoder, bit for bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from sagellm_backend import cpu, formats
from sagellm_backend.formats.exact import mxfp4_as_q5_0
from sagellm_protocol.backend import BLOCK_ELEMENTS, SCALED, RawWeight, WeightFormat, WeightUse
from sagellm_protocol.devices import DType
from sagellm_protocol.errors import ErrorCode, SageLLMError
from weights import HALVES, blocks

GGUFS = [kind for kind in WeightFormat if kind not in SCALED]


def random_bytes(kind, rows, blocks, seed=0):
    """Random blocks; float16 fields are kept finite by masking the exponent's top bit wherever two bytes may be one."""
    _, size = BLOCK_ELEMENTS[kind]
    data = np.random.default_rng(seed).integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    if kind in (WeightFormat.F32, WeightFormat.BF16, WeightFormat.F16):
        data[..., -1] &= 0xBF
    else:
        if kind is WeightFormat.MXFP4:
            data[..., 0] = np.minimum(data[..., 0], 251)  # 12 times the largest powers of two overflows
        for at in HALVES[kind]:
            data[..., at + 1] &= 0xBF
    return data.reshape(rows, -1)


def theirs(data, kind):
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.value.upper()])


@pytest.mark.parametrize("kind", [kind for kind in GGUFS if kind not in (WeightFormat.F32, WeightFormat.F16)])
@pytest.mark.parametrize("seed", range(3))
def test_decoding_equals_ggufs_own(kind, seed):
    data = random_bytes(kind, 3, 5, seed)
    got = formats.decode(torch.from_numpy(data), kind).numpy()
    np.testing.assert_array_equal(got, theirs(data, kind))


@pytest.mark.parametrize("kind", GGUFS)
def test_a_read_only_view_expands_in_pieces_to_the_same(kind, monkeypatch):
    monkeypatch.setattr(formats, "_CHUNK_ELEMENTS", 600)
    elements, _ = BLOCK_ELEMENTS[kind]
    data = random_bytes(kind, 7, 2)
    raw = RawWeight("w", kind.value, (7, 2 * elements), data.tobytes())
    whole = formats.expand(raw, kind, torch.float32)
    assert torch.equal(whole, formats.decode(torch.from_numpy(data), kind))
    assert whole.shape == raw.shape


def test_a_table_of_blocks_is_not_expanded(tmp_path):
    kind = WeightFormat.Q4_K
    data = random_bytes(kind, 64, 2)
    raw = RawWeight("w", kind.value, (64, 512), memoryview(data.tobytes()))
    backend = cpu.create(threads=1)
    table = backend.pack_weight([raw], DType.FLOAT32, use=WeightUse.EMBEDDING)
    assert table.nbytes == data.nbytes
    rows = backend.embedding(torch.tensor([63, 0]), table, DType.FLOAT32)
    assert torch.equal(rows, formats.decode(torch.from_numpy(data[[63, 0]]), kind))


@pytest.mark.parametrize(
    ("raw", "code", "message"),
    [
        (RawWeight("w", "q9_z", (2, 32), b""), ErrorCode.UNSUPPORTED, "w is stored as 'q9_z'.*q4_0"),
        (RawWeight("w", "q4_0", (2, 33), b""), ErrorCode.INVALID_REQUEST, "rows of 33 elements.*blocks of 32"),
        (RawWeight("w", "q4_0", (2, 32), b"123"), ErrorCode.INVALID_REQUEST, "takes 36 bytes, but 3 are there"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(raw, code, message):
    with pytest.raises(SageLLMError, match=message) as caught:
        cpu.create(threads=1).tensor(raw, DType.FLOAT32)
    assert caught.value.code is code


def test_mxfp4_is_rewritten_in_q5_0_without_a_change():
    raw = blocks(WeightFormat.MXFP4, 6, 96)
    rewritten = mxfp4_as_q5_0(raw)
    assert rewritten.format == "q5_0"
    assert rewritten.shape == raw.shape
    before, after = (formats.expand(each, WeightFormat(each.format), torch.float32) for each in (raw, rewritten))
    assert torch.equal(before, after)


@pytest.mark.parametrize("exponent", [0, 103, 144, 254])
def test_mxfp4_scales_beyond_float16_are_left_as_they_are_unless_they_scale_zeros(exponent):
    data = np.full((2, 17), 0x31, dtype=np.uint8)
    data[:, 0] = 120, exponent
    assert mxfp4_as_q5_0(RawWeight("w", "mxfp4", (1, 64), data.tobytes())) is None
    data[1, 1:] = 0x08  # zeros, half of them negative
    raw = RawWeight("w", "mxfp4", (1, 64), data.tobytes())
    rewritten = mxfp4_as_q5_0(raw)
    before, after = (formats.expand(each, WeightFormat(each.format), torch.float32) for each in (raw, rewritten))
    assert torch.equal(before, after)
