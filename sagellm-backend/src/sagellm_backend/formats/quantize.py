"""Quantising at load: a weight as its file holds it to the same weight in blocks of 8 or 4 bits.

The blocks are GGUF's ``Q8_0`` and ``Q4_1``, so whatever keeps, multiplies or expands those does it for quantised
checkpoints and for weights quantised here alike. Knows nothing of devices, nor of what a weight is for.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sagellm_protocol.backend import BLOCK_ELEMENTS, RawWeight, WeightFormat
from sagellm_protocol.errors import ErrorCode, SageLLMError

from . import decode_chunks, raw_rows

Stored = tuple[RawWeight, WeightFormat]
"""A weight, and how its bytes are to be read."""
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

QUANTIZATIONS: Mapping[str, WeightFormat] = {"int8": WeightFormat.Q8_0, "int4": WeightFormat.Q4_1}
"""What is offered, and the format that it makes."""

BLOCK = 32
_AT_ONCE = 8192
"""Blocks that one thread works on at a time, in half a dozen arrays of 1 MiB. Of fewer, threads would wait for each
other's turn to start the next operation: 512 take four times as long on two threads, 2,048 half as long again."""
_SPANS = (1.0, 0.9)
"""First guesses of a 4-bit grid, as shares of the block's range. A third gives 0.5 % less error for half as much time
again."""
_REFITS = 2
"""Times that a guess is improved. A third gives 1 % less error."""


def fits(raw: RawWeight) -> bool:
    """Whether rows are whole blocks; a weight of other rows is left as it is."""
    return raw.shape[-1] % BLOCK == 0


def bits(kind: WeightFormat) -> float:
    """Bits that an element takes, scales included."""
    elements, size = BLOCK_ELEMENTS[kind]
    return 8 * size / elements


def quantized(parts: Sequence[Stored], quantization: str, kept: Container[WeightFormat]) -> list[Stored]:
    """Parts of one weight, quantised where that makes them smaller.

    A part that is stored in no more bits already stays as it is (requantising loses and gains nothing), if ``kept``
    says that it is kept so; but parts that would differ in format are all quantised, so that they can be stacked.

    Args:
        parts: Matrices of equal E.
        quantization: One of :data:`QUANTIZATIONS`.
        kept: Formats that the backend keeps as they are stored.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for values that no block can hold.
    """
    target = QUANTIZATIONS[quantization]
    if not all(fits(raw) for raw, _ in parts):
        return list(parts)
    after = {kind if kind in kept and bits(kind) <= bits(target) else target for _, kind in parts}
    alike = after.pop() if len(after) == 1 else target
    return [(raw, kind) if kind is alike else (quantize(raw, kind, target), target) for raw, kind in parts]


def quantize(raw: RawWeight, kind: WeightFormat, target: WeightFormat) -> RawWeight:
    """A weight in blocks of ``target``, made piece by piece: besides the result, a few megabytes are needed.

    It runs on as many threads as torch may use, and gives the same bytes on any number.

    Args:
        raw: A weight whose rows are whole blocks.
        kind: How its bytes are to be read.
        target: A format of :data:`ENCODERS`.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for values that are not finite, or beyond what float16 scales reach.
    """
    encode, size = ENCODERS[target], BLOCK_ELEMENTS[target][1]
    blocks_a_row = raw.shape[-1] // BLOCK
    made: NDArray[Any] = np.empty((raw_rows(raw).shape[0] * blocks_a_row, size), np.uint8)

    def work(piece: Floats, first: int, start: int) -> bool:
        part = piece[start : start + _AT_ONCE]
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
            return encode(part, made[first + start : first + start + len(part)])

    # numpy computes a call in its caller's thread: several threads then work without waiting for each other, where
    # torch's would meet at the end of every operation.
    with ThreadPoolExecutor(torch.get_num_threads(), "quantize") as threads:
        for row, rows in decode_chunks(raw, kind):
            piece = rows.numpy().reshape(-1, BLOCK)
            starts = range(0, len(piece), _AT_ONCE)
            if not all(threads.map(lambda start, p=piece, r=row: work(p, r * blocks_a_row, start), starts)):
                raise SageLLMError(
                    ErrorCode.INVALID_REQUEST,
                    f"{raw.name} holds values that {target.value} cannot: infinite, not a number, or too large for"
                    " scales of float16; load it without quantization",
                    "quantization",
                )
    return RawWeight(raw.name, target.value, raw.shape, made.data)


def _q8_0(values: Floats, out: Bytes) -> bool:
    """``[n, 32]`` to blocks ``[n, 34]``: the largest magnitude becomes 127."""
    scale = _halves(np.abs(values).max(axis=1) / np.float32(127))
    if not np.isfinite(scale).all():
        return False
    quants = values * _inverse(scale)[:, None]
    np.rint(quants, out=quants)
    # A scale that was rounded down to float16 may leave the largest a little above 127.
    np.clip(quants, -127, 127, out=quants)
    out[:, :2] = _float16_bytes(scale)
    out[:, 2:] = quants.astype(np.int8).view(np.uint8)
    return True


def _q4_1(values: Floats, out: Bytes) -> bool:
    """``[n, 32]`` to blocks ``[n, 20]``: ``x ≈ d q + m`` with the least squared error that a short search finds.

    From each of two guesses of the grid, in turns: round to it, then fit ``d`` and ``m`` to the rounded values by least
    squares, which can only lower the error (Lloyd 1982, for evenly spaced levels; ggml's ``make_qkx2_quants`` fits so
    too, from more guesses and once each). The best fit is kept, and values are rounded to it once more, with ``d``
    and ``m`` in float16 as the block holds them. For normal values the error is 7.2 % of their spread, where taking the
    grid from the smallest to the largest value leaves 7.8 %.
    """
    x = np.ascontiguousarray(values.T)  # [32, n]: sums over a block are then sums of rows
    low, high, mean = x.min(axis=0), x.max(axis=0), x.mean(axis=0)
    centred = x - mean
    middle, span = (low + high) * np.float32(0.5), high - low
    scale, offset = np.zeros_like(low), mean
    explained = np.zeros_like(low)
    q = np.empty_like(x)
    for share in _SPANS:
        d, m = span * np.float32(share / 15), middle - span * np.float32(share / 2)
        for _ in range(_REFITS):
            _round_to(x, d, m, q)
            mean_q = q.mean(axis=0)
            covariance = np.einsum("ij,ij->j", q, centred)
            variance = np.einsum("ij,ij->j", q, q) - BLOCK * mean_q * mean_q
            d = np.divide(covariance, variance, out=np.zeros_like(d), where=variance > 0)
            m = mean - d * mean_q
            # Of the block's squares about its mean, the part that the fit accounts for: what is left is the error.
            gain = covariance * d
            better = gain > explained
            scale, offset = np.where(better, d, scale), np.where(better, m, offset)
            explained = np.where(better, gain, explained)
    scale, offset = _halves(scale), _halves(offset)
    if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
        return False
    _round_to(x, scale, offset, q)
    nibbles = q.astype(np.uint8)
    out[:, :2], out[:, 2:4] = _float16_bytes(scale), _float16_bytes(offset)
    out[:, 4:] = (nibbles[:16] | nibbles[16:] << 4).T
    return True


ENCODERS: Mapping[WeightFormat, Callable[[Floats, Bytes], bool]] = {
    WeightFormat.Q8_0: _q8_0,
    WeightFormat.Q4_1: _q4_1,
}
"""Values ``[n, 32]`` to blocks ``[n, bytes]``, written in place; false for values that no block can hold."""


def _round_to(x: Floats, d: Floats, m: Floats, q: Floats) -> None:
    """The nearest of 16 levels ``d q + m`` for each of ``x [32, n]``, into ``q``."""
    inverse = _inverse(d)
    np.multiply(x, inverse, out=q)
    np.subtract(q, m * inverse, out=q)
    np.rint(q, out=q)
    np.maximum(q, 0, out=q)
    np.minimum(q, 15, out=q)


def _inverse(scale: Floats) -> Floats:
    inverse: Floats = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    return inverse


def _halves(numbers: Floats) -> Floats:
    """Rounded to float16."""
    return numbers.astype(np.float16).astype(np.float32)


def _float16_bytes(numbers: Floats) -> NDArray[Any]:
    return numbers.astype(np.float16)[:, None].view(np.uint8)
