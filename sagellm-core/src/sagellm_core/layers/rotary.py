"""Rotary position embedding: from what a checkpoint says to one angular frequency for each rotated pair.

The arithmetic is that of ``transformers`` step by step, in float32, so that angles agree with the reference far into
the context. Knows nothing of tensors or positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from sagellm_core.loading.config import RopeConfig
from sagellm_protocol.backend import RopeSpec

Frequencies = NDArray[np.float32]


def resolve(rope: RopeConfig) -> RopeSpec:
    """Frequencies and attention factor of ``rope``, scaling applied."""
    inv_freq, attention_factor = _KINDS[rope.kind](rope)
    return RopeSpec(
        inv_freq=tuple(float(frequency) for frequency in inv_freq),
        rotary_dim=rope.rotary_dim,
        attention_factor=attention_factor,
        interleaved=rope.interleaved,
    )


def _pair_powers(rope: RopeConfig) -> Frequencies:
    exponents = np.arange(0, rope.rotary_dim, 2, dtype=np.float32) / np.float32(rope.rotary_dim)
    # A float32 power is off by a unit in the last place here and there, which shows in the angle of a far position.
    powers: Frequencies = np.power(rope.theta, exponents.astype(np.float64)).astype(np.float32)
    return powers


def _unscaled(rope: RopeConfig) -> Frequencies:
    inv_freq: Frequencies = np.float32(1) / _pair_powers(rope)
    return inv_freq


def _default(rope: RopeConfig) -> tuple[Frequencies, float]:
    return _unscaled(rope), 1.0


def _linear(rope: RopeConfig) -> tuple[Frequencies, float]:
    """Position interpolation (Chen et al. 2023)."""
    return _unscaled(rope) / np.float32(rope.factor), 1.0


def _dynamic(rope: RopeConfig) -> tuple[Frequencies, float]:
    """Dynamic NTK scaling changes nothing within the context that the model states, and nothing runs beyond it here."""
    return _unscaled(rope), 1.0


def _factors(rope: RopeConfig) -> tuple[Frequencies, float]:
    """One divisor a pair, as GGUF files carry Llama 3's scaling."""
    return np.float32(1) / (_pair_powers(rope) * np.asarray(rope.factors, dtype=np.float32)), 1.0


def _llama3(rope: RopeConfig) -> tuple[Frequencies, float]:
    """Long waves are slowed down, short ones kept, those between blended (Llama 3.1)."""
    inv_freq = _unscaled(rope)
    factor = np.float32(rope.factor)
    original = _original(rope)
    # The reference divides a number by a tensor as the number times the reciprocal; so does this, to the last bit.
    wavelength = np.float32(2 * math.pi) * (np.float32(1) / inv_freq)
    long, short = original / rope.low_freq_factor, original / rope.high_freq_factor
    scaled = np.where(wavelength > long, inv_freq / factor, inv_freq)
    share = (np.float32(original) * (np.float32(1) / wavelength) - np.float32(rope.low_freq_factor)) / np.float32(
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (np.float32(1) - share) * scaled / factor + share * scaled
    between = (wavelength >= short) & (wavelength <= long)
    return np.where(between, blended, scaled), 1.0


def _yarn(rope: RopeConfig) -> tuple[Frequencies, float]:
    """Interpolate slow pairs, keep fast ones, ramp between; sharpen attention (YaRN, Peng et al. 2023)."""
    powers = _pair_powers(rope)
    kept = np.float32(1) / powers
    interpolated = np.float32(1) / (np.float32(rope.factor) * powers)
    low, high = _correction(rope, rope.beta_fast), _correction(rope, rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001  # a step rather than a division by zero
    pairs = np.arange(rope.rotary_dim // 2, dtype=np.float32)
    keep = np.float32(1) - np.clip((pairs - np.float32(low)) / np.float32(high - low), 0, 1)
    inv_freq = interpolated * (np.float32(1) - keep) + kept * keep
    return inv_freq.astype(np.float32), _yarn_attention_factor(rope)


def _longrope(rope: RopeConfig) -> tuple[Frequencies, float]:
    """One divisor a pair, of two lists by the context that is run (LongRoPE, Ding et al. 2024)."""
    assert rope.context is not None, "loading states it for longrope"
    original = _original(rope)
    divisors = rope.long_factors if rope.context > original else rope.factors
    inv_freq = np.float32(1) / (np.asarray(divisors, dtype=np.float32) * _pair_powers(rope))
    if rope.attention_factor is not None:
        return inv_freq, rope.attention_factor
    return inv_freq, 1.0 if rope.factor <= 1 else math.sqrt(1 + math.log(rope.factor) / math.log(original))


def _correction(rope: RopeConfig, rotations: float) -> float:
    """The pair that turns ``rotations`` times over the original context."""
    turns = _original(rope) / (rotations * 2 * math.pi)
    return rope.rotary_dim * math.log(turns) / (2 * math.log(rope.theta))


def _yarn_attention_factor(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def magnitude(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return magnitude(rope.mscale) / magnitude(rope.mscale_all_dim)
    return magnitude(1.0)


def _original(rope: RopeConfig) -> int:
    assert rope.original_max_position_embeddings is not None, "loading states it for every scaled kind"
    return rope.original_max_position_embeddings


_KINDS: Mapping[str, Callable[[RopeConfig], tuple[Frequencies, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "factors": _factors,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
