"""Rotary embedding: cosines and sines once a step, queries and keys turned together where they lie side by side.

Knows nothing of attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sagellm_protocol.backend import RopeSpec


@dataclass(frozen=True)
class Angles:
    """Cosines and signed sines of one step's positions.

    Attributes:
        positions: A copy of what they were made for, ``[T]``.
        cos: ``[T, 1, rotary_dim]``.
        sin: Likewise; negative where the partner is subtracted.
    """

    positions: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


class Rotary:
    """Turns heads by position, and keeps the last step's angles of each spec.

    Angles are reused when the positions are equal, not when the tensor is the same: engines refill one buffer each
        step.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, torch.dtype], tuple[RopeSpec, Angles]] = {}

    def turn(
        self, q: torch.Tensor, k: torch.Tensor, positions: torch.Tensor, spec: RopeSpec
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate ``[T, Hq, D]`` and ``[T, Hkv, D]`` in place."""
        angles = self._angles(positions, spec, q.dtype)
        both = side_by_side(q, k)
        if both is not None:
            _turn(both, angles, spec)
        else:
            _turn(q, angles, spec)
            _turn(k, angles, spec)
        return q, k

    def _angles(self, positions: torch.Tensor, spec: RopeSpec, dtype: torch.dtype) -> Angles:
        # Hashing a spec's many floats each layer would cost more than the lookup; the entry keeps it alive, so ids
        # are unique.
        key = (id(spec), dtype)
        kept = self._last.get(key)
        if kept is not None and torch.equal(kept[1].positions, positions):
            return kept[1]
        angles = _make_angles(positions, spec, dtype)
        self._last[key] = (spec, angles)
        return angles


def side_by_side(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor | None:
    """One view over the heads of both, when ``right`` follows ``left`` in every row of one buffer.

    Args:
        left: ``[T, H1, D]``.
        right: ``[T, H2, D]``.

    Returns:
        ``[T, H1 + H2, D]`` or ``None``.
    """
    strides = left.stride()
    tokens, heads, size = left.shape
    if (
        strides != right.stride()
        or strides[1] != size
        or right.data_ptr() != left.data_ptr() + heads * size * left.element_size()
        or right.untyped_storage().data_ptr() != left.untyped_storage().data_ptr()
    ):
        return None
    return left.as_strided((tokens, heads + right.shape[1], size), strides, left.storage_offset())


def _make_angles(positions: torch.Tensor, spec: RopeSpec, dtype: torch.dtype) -> Angles:
    turns = positions.float()[:, None] * torch.tensor(spec.inv_freq)  # [T, rotary_dim / 2]
    cos = turns.cos() * spec.attention_factor
    sin = turns.sin() * spec.attention_factor
    if spec.interleaved:
        cos, sin = cos.repeat_interleave(2, dim=1), torch.stack((-sin, sin), dim=-1).flatten(1)
    else:
        cos, sin = cos.repeat(1, 2), torch.cat((-sin, sin), dim=1)
    return Angles(positions.clone(), cos[:, None].to(dtype), sin[:, None].to(dtype))


def _turn(x: torch.Tensor, angles: Angles, spec: RopeSpec) -> None:
    turned = x if spec.rotary_dim == x.shape[2] else x[..., : spec.rotary_dim]
    if spec.interleaved:
        partner = turned.unflatten(2, (-1, 2)).flip(-1).flatten(2)
    else:
        partner = turned.roll(spec.rotary_dim // 2, -1)
    torch.addcmul(partner.mul_(angles.sin), turned, angles.cos, out=turned)
