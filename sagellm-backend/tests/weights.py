"""Raw weights made of random numbers, for tests."""

from __future__ import annotations

import numpy as np

from sagellm_protocol.backend import BLOCK_ELEMENTS, RawWeight, WeightFormat
from sagellm_protocol.testing import truth

HALVES = {
    WeightFormat.Q4_0: [0],
    WeightFormat.Q4_1: [0, 2],
    WeightFormat.Q5_0: [0],
    WeightFormat.Q5_1: [0, 2],
    WeightFormat.Q8_0: [0],
    WeightFormat.Q2_K: [80, 82],
    WeightFormat.Q3_K: [108],
    WeightFormat.Q4_K: [0, 2],
    WeightFormat.Q5_K: [0, 2],
    WeightFormat.Q6_K: [208],
    WeightFormat.MXFP4: [],
}
"""Where the float16 fields of a block begin."""


def f32(*shape: int, seed: int = 0, name: str = "w", scale: float = 1.0) -> RawWeight:
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return RawWeight(name, "f32", shape, np.ascontiguousarray(values))


def blocks(kind: WeightFormat, rows: int, cols: int, seed: int = 0) -> RawWeight:
    """Random blocks of a format, with scales such that elements are of the order of 0.1."""
    _, size = BLOCK_ELEMENTS[kind]
    drawn = truth.random_blocks(np.random.default_rng(seed), kind, (rows, cols))
    raw = np.frombuffer(drawn, np.uint8).reshape(-1, size).copy()
    for at in HALVES[kind]:
        smaller = (np.ascontiguousarray(raw[:, at : at + 2]).view("<f2") * 0.1).astype("<f2")
        raw[:, at : at + 2] = smaller.view(np.uint8)
    return RawWeight("random", kind.value, (rows, cols), raw.tobytes())


def raw_weight(kind: WeightFormat, rows: int, cols: int, seed: int = 0) -> RawWeight:
    """Blocks, or plain numbers of the same order."""
    return blocks(kind, rows, cols, seed) if kind in HALVES else f32(rows, cols, seed=seed, scale=0.1)
