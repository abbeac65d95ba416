"""Raw weights made of random numbers, for tests."""

from __future__ import annotations

import numpy as np

from sagellm_protocol.backend import RawWeight


def f32(*shape: int, seed: int = 0, name: str = "w", scale: float = 1.0) -> RawWeight:
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return RawWeight(name, "f32", shape, np.ascontiguousarray(values))
