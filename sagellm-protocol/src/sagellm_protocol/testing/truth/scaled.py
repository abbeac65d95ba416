"""Reading numbers whose scales lie beside them, one row and one group of columns at a time.

Knows nothing of the checkpoints that such weights come from.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sagellm_protocol.backend import SCALED, RawWeight, WeightFormat

from .weights import Bytes, Floats, dequantize, random_blocks

_GROUP = 32


def values(raw: RawWeight) -> Floats:
    """Values of a weight of any format, in its own shape."""
    format = WeightFormat(raw.format)
    data = bytes(memoryview(raw.data))
    if format not in SCALED:
        return dequantize(data, format, raw.shape)
    rows, columns = raw.shape
    numbers = _NUMBERS[format](np.frombuffer(data, np.uint8)).reshape(rows, columns)
    scales = values(raw.extra["scales"])
    zeros = values(raw.extra["zeros"]) if "zeros" in raw.extra else np.full(scales.shape, float(SCALED[format]))
    order = np.frombuffer(memoryview(raw.extra["columns"].data), "<i4") if "columns" in raw.extra else range(columns)
    width = columns // scales.shape[1]
    result = np.empty((rows, columns))
    for stored, column in enumerate(order):
        group = stored // width
        result[:, column] = scales[:, group] * (numbers[:, stored] - zeros[:, group])
    return result


def random_weight(
    rng: np.random.Generator, format: WeightFormat, shape: tuple[int, ...], name: str = "test"
) -> RawWeight:
    """A weight of any format with random bits and scales that keep its values near one.

    Of scaled formats, columns are in groups of 32 where they are a multiple of it, and ``int4`` states zero points and
    an order of columns.
    """
    if format not in SCALED:
        return RawWeight(name, format.value, shape, random_blocks(rng, format, shape))
    rows, columns = shape
    groups = columns // _GROUP if columns % _GROUP == 0 else 1
    drawn = rng.uniform(0.5, 1.5, (rows, groups)) * _SCALES[format]
    extra = {"scales": _halves(f"{name}.scales", drawn)}
    if format is WeightFormat.INT4:
        extra["zeros"] = _halves(f"{name}.zeros", rng.integers(0, 17, (rows, groups)))
        order = rng.permutation(columns).astype("<i4")
        extra["columns"] = RawWeight(f"{name}.columns", "i32", (columns,), order.tobytes())
    numbers = rng.integers(0, 256, rows * columns // (2 if format is WeightFormat.INT4 else 1), dtype=np.uint8)
    if format is WeightFormat.F8_E4M3:
        numbers[numbers & 127 == 127] = 0  # not a number
    return RawWeight(name, format.value, shape, numbers.tobytes(), extra)


def _halves(name: str, numbers: npt.NDArray[np.generic]) -> RawWeight:
    return RawWeight(name, WeightFormat.F16.value, numbers.shape, numbers.astype("<f2").tobytes())


def _int4(data: Bytes) -> Floats:
    return np.stack([data & 15, data >> 4], axis=1).astype(np.float64)


def _int8(data: Bytes) -> Floats:
    return data.view(np.int8).astype(np.float64)


def _f8_e4m3(data: Bytes) -> Floats:
    """OCP's 8-bit floats: exponents have a bias of 7, and the smallest is for numbers below the normal ones."""
    made = []
    for code in data.tolist():
        exponent, fraction = code >> 3 & 15, code & 7
        magnitude = fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
        made.append(-magnitude if code & 128 else magnitude)
    return np.array(made)


_NUMBERS = {WeightFormat.INT4: _int4, WeightFormat.INT8: _int8, WeightFormat.F8_E4M3: _f8_e4m3}
_SCALES = {WeightFormat.INT4: 1 / 8, WeightFormat.INT8: 1 / 128, WeightFormat.F8_E4M3: 1 / 64}
