"""GGUF's formats with blocks of 32 elements (the ggml project's ``block_q4_0`` and its like).

A block is a float16 scale ``d``, in some formats a float16 offset ``m``, and the quants. Four-bit quants lie as 16
bytes: low nibbles are elements 0 to 15, high nibbles 16 to 31; five-bit formats keep the fifth bits of all 32 as one
little-endian word. Knows nothing of rows or shapes.
"""

from __future__ import annotations

import torch

_NIBBLES = (0, 4)


def half(bytes_: torch.Tensor) -> torch.Tensor:
    """Two bytes a block as float32: ``[n, 2]`` uint8 to ``[n, 1]``."""
    return bytes_.contiguous().view(torch.float16).float()


def fields(packed: torch.Tensor, shifts: tuple[int, ...], mask: int) -> torch.Tensor:
    """Bit fields of packed bytes: ``[n, g, b]`` uint8 to ``[n, g, len(shifts), b]`` uint8, one plane a shift."""
    by = torch.tensor(shifts, dtype=torch.uint8).view(1, 1, -1, 1)
    return (packed.unsqueeze(2) >> by) & mask


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """``[n, 16]`` uint8 to ``[n, 32]`` uint8."""
    return fields(packed.unsqueeze(1), _NIBBLES, 0x0F).view(-1, 32)


def _fifth_bits(packed: torch.Tensor) -> torch.Tensor:
    """``[n, 4]`` uint8 to ``[n, 32]`` uint8 holding 0 or 16."""
    by = torch.arange(8, dtype=torch.uint8).view(1, 1, 8)
    return (((packed.unsqueeze(2) >> by) & 1) << 4).view(-1, 32)


def q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 18]`` to ``[n, 32]``: ``d * (q - 8)``."""
    return half(blocks[:, :2]) * (_nibbles(blocks[:, 2:]).float() - 8.0)


def q4_1(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 20]`` to ``[n, 32]``: ``d * q + m``."""
    return half(blocks[:, :2]) * _nibbles(blocks[:, 4:]).float() + half(blocks[:, 2:4])


def q5_0(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 22]`` to ``[n, 32]``: ``d * (q - 16)``."""
    quants = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return half(blocks[:, :2]) * (quants.float() - 16.0)


def q5_1(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 24]`` to ``[n, 32]``: ``d * q + m``."""
    quants = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return half(blocks[:, :2]) * quants.float() + half(blocks[:, 2:4])


def q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 34]`` to ``[n, 32]``: ``d * q``, signed."""
    return half(blocks[:, :2]) * blocks[:, 2:].contiguous().view(torch.int8).float()


_TWICE_E2M1 = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""What the codes of 4-bit floats mean, doubled, so that the largest scale is a float32 too."""


def mxfp4(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 17]`` to ``[n, 32]``: ``2^(e - 127)`` times 4-bit floats (OCP Microscaling Formats 1.0)."""
    values = torch.tensor((*_TWICE_E2M1, *(-value for value in _TWICE_E2M1)))
    return torch.ldexp(values[_nibbles(blocks[:, 1:]).int()], blocks[:, :1].int() - 128)
