"""Reading GGUF's weight blocks, one block at a time.

The layouts are those of ggml's quantised types (ggml-org/ggml, ``ggml-common.h``). Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sagellm_protocol.backend import BLOCK_ELEMENTS, WeightFormat

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


def dequantize(data: bytes, format: WeightFormat, shape: tuple[int, ...]) -> Floats:
    """Values of a weight's raw bytes, in the shape asked for."""
    elements, size = BLOCK_ELEMENTS[format]
    blocks = np.frombuffer(data, np.uint8).reshape(-1, size)
    read = _READERS[format]
    values = np.concatenate([read(block) for block in blocks])
    if values.size != elements * len(blocks):
        raise AssertionError(f"{format.value}: {values.size} values from {len(blocks)} blocks")
    return values.reshape(shape)


def random_blocks(rng: np.random.Generator, format: WeightFormat, shape: tuple[int, ...]) -> bytes:
    """Raw bytes of a weight with random bits and scales that keep its values near one."""
    elements, size = BLOCK_ELEMENTS[format]
    count = int(np.prod(shape)) // elements
    if elements == 1:
        values = rng.standard_normal(count).astype(np.float32)
        return _float_bytes(values, format)
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    if format is WeightFormat.MXFP4:
        blocks[:, 0] = rng.integers(124, 128, count)
    for offset, scale in _SCALES.get(format, ()):
        drawn = (rng.uniform(0.5, 1.5, count) * scale).astype("<f2")
        blocks[:, offset : offset + 2] = drawn.view(np.uint8).reshape(count, 2)
    return blocks.tobytes()


def _float_bytes(values: npt.NDArray[np.float32], format: WeightFormat) -> bytes:
    if format is WeightFormat.BF16:
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype("<f4" if format is WeightFormat.F32 else "<f2").tobytes()


def _half(block: Bytes, offset: int) -> float:
    return float(block[offset : offset + 2].view("<f2")[0])


def _nibbles(packed: Bytes) -> Floats:
    """Low halves of all bytes, then their high halves."""
    return np.concatenate([packed & 15, packed >> 4]).astype(np.float64)


def _f32(block: Bytes) -> Floats:
    return block.view("<f4").astype(np.float64)


def _f16(block: Bytes) -> Floats:
    return block.view("<f2").astype(np.float64)


def _bf16(block: Bytes) -> Floats:
    return (block.view("<u2").astype("<u4") << 16).view("<f4").astype(np.float64)


def _q4_0(block: Bytes) -> Floats:
    return _half(block, 0) * (_nibbles(block[2:]) - 8)


def _q4_1(block: Bytes) -> Floats:
    return _half(block, 0) * _nibbles(block[4:]) + _half(block, 2)


def _fifth_bits(packed: Bytes) -> Floats:
    return 16.0 * np.unpackbits(packed, bitorder="little").astype(np.float64)


def _q5_0(block: Bytes) -> Floats:
    return _half(block, 0) * ((_nibbles(block[6:]) + _fifth_bits(block[2:6])) - 16)


def _q5_1(block: Bytes) -> Floats:
    return _half(block, 0) * (_nibbles(block[8:]) + _fifth_bits(block[4:8])) + _half(block, 2)


def _q8_0(block: Bytes) -> Floats:
    return _half(block, 0) * block[2:].view(np.int8).astype(np.float64)


def _q2_k(block: Bytes) -> Floats:
    scales, quants, d, dmin = block[:16], block[16:80], _half(block, 80), _half(block, 82)
    values: list[float] = []
    for half in range(2):
        for shift in (0, 2, 4, 6):
            for part in range(2):
                scale = int(scales[len(values) // 16])
                chosen = quants[32 * half + 16 * part : 32 * half + 16 * part + 16].tolist()
                values.extend(d * (scale & 15) * (quant >> shift & 3) - dmin * (scale >> 4) for quant in chosen)
    return np.array(values)


def _q3_k(block: Bytes) -> Floats:
    high, quants, packed, d = block[:32], block[32:96], [int(byte) for byte in block[96:108]], _half(block, 108)
    # Sixteen scales of six bits: the low four in the halves of bytes 0 to 7, the high two in bytes 8 to 11.
    low = [packed[i] & 15 for i in range(8)] + [packed[i] >> 4 for i in range(8)]
    scales = [low[i] | ((packed[8 + i % 4] >> (2 * (i // 4))) & 3) << 4 for i in range(16)]
    values: list[float] = []
    for half in range(2):
        for step, shift in enumerate((0, 2, 4, 6)):
            for lane in range(32):
                quant = (int(quants[32 * half + lane]) >> shift) & 3
                bit = (int(high[lane]) >> (4 * half + step)) & 1
                values.append(d * (scales[len(values) // 16] - 32) * (quant - (0 if bit else 4)))
    return np.array(values)


def _six_bit_pairs(packed: Bytes) -> list[tuple[int, int]]:
    """Scale and minimum, six bits each, of the eight parts of a block of Q4_K or Q5_K."""
    p = [int(byte) for byte in packed]
    first = [(p[i] & 63, p[i + 4] & 63) for i in range(4)]
    rest = [(p[i + 8] & 15 | (p[i] >> 6) << 4, p[i + 8] >> 4 | (p[i + 4] >> 6) << 4) for i in range(4)]
    return first + rest


def _q4_k(block: Bytes) -> Floats:
    return _k_with_minimum(block, block[16:], None)


def _q5_k(block: Bytes) -> Floats:
    return _k_with_minimum(block, block[48:], block[16:48])


def _k_with_minimum(block: Bytes, quants: Bytes, fifth: Bytes | None) -> Floats:
    d, dmin, values = _half(block, 0), _half(block, 2), []
    for part, (scale, minimum) in enumerate(_six_bit_pairs(block[4:16])):
        quant = (quants[32 * (part // 2) :][:32] >> (4 * (part % 2)) & 15).astype(np.int64)
        if fifth is not None:
            quant |= ((fifth >> part) & 1).astype(np.int64) << 4
        values.append(d * scale * quant - dmin * minimum)
    return np.concatenate(values)


def _q6_k(block: Bytes) -> Floats:
    low, high, scales, d = block[:128], block[128:192], block[192:208].view(np.int8), _half(block, 208)
    values: list[float] = []
    for half in range(2):
        for quarter in range(4):
            for lane in range(32):
                nibble = int(low[64 * half + 32 * (quarter % 2) + lane]) >> (4 * (quarter // 2)) & 15
                bits = int(high[32 * half + lane]) >> (2 * quarter) & 3
                values.append(d * int(scales[len(values) // 16]) * ((nibble | bits << 4) - 32))
    return np.array(values)


_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _mxfp4(block: Bytes) -> Floats:
    """OCP's microscaling: a power of two, and floats of one sign, two exponent and one mantissa bit."""
    codes = _nibbles(block[1:]).astype(int)
    values = [_E2M1[code & 7] * (-1 if code & 8 else 1) * 2.0 ** (int(block[0]) - 127) for code in codes]
    return np.array(values)


_READERS: dict[WeightFormat, Callable[[Any], Floats]] = {
    WeightFormat.F32: _f32,
    WeightFormat.F16: _f16,
    WeightFormat.BF16: _bf16,
    WeightFormat.Q4_0: _q4_0,
    WeightFormat.Q4_1: _q4_1,
    WeightFormat.Q5_0: _q5_0,
    WeightFormat.Q5_1: _q5_1,
    WeightFormat.Q8_0: _q8_0,
    WeightFormat.Q2_K: _q2_k,
    WeightFormat.Q3_K: _q3_k,
    WeightFormat.Q4_K: _q4_k,
    WeightFormat.Q5_K: _q5_k,
    WeightFormat.Q6_K: _q6_k,
    WeightFormat.MXFP4: _mxfp4,
}

# Where a format keeps its 16-bit scales, and a size for each at which values come out near one.
_SCALES: dict[WeightFormat, tuple[tuple[int, float], ...]] = {
    WeightFormat.Q4_0: ((0, 1 / 8),),
    WeightFormat.Q4_1: ((0, 1 / 8), (2, -1.0)),
    WeightFormat.Q5_0: ((0, 1 / 16),),
    WeightFormat.Q5_1: ((0, 1 / 16), (2, -1.0)),
    WeightFormat.Q8_0: ((0, 1 / 128),),
    WeightFormat.Q2_K: ((80, 1 / 16), (82, 1 / 16)),
    WeightFormat.Q3_K: ((108, 1 / 64),),
    WeightFormat.Q4_K: ((0, 1 / 512), (2, 1 / 64)),
    WeightFormat.Q5_K: ((0, 1 / 1024), (2, 1 / 64)),
    WeightFormat.Q6_K: ((208, 1 / 2048),),
}
