"""GGUF's K formats: super-blocks of 256 elements with quantised scales (the ggml project's ``block_q4_K`` and so on).

A super-block holds float16 ``d`` (and ``dmin``), small integer scales (and minima) of its 8 or 16 sub-blocks, and
quants whose low bits and high bits lie apart. Knows nothing of rows or shapes.
"""

from __future__ import annotations

import torch

from .blocks32 import fields, half

_PAIRS = (0, 2, 4, 6)
_BITS = (0, 1, 2, 3, 4, 5, 6, 7)
_NIBBLES = (0, 4)


def q2_k(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 84]``: 16 scale bytes (low nibble scale, high nibble minimum), 64 bytes of 2-bit quants, d, dmin."""
    n = blocks.shape[0]
    packed = blocks[:, :16]
    scale = (half(blocks[:, 80:82]) * (packed & 0x0F).float()).unsqueeze(2)  # [n, 16, 1]
    minimum = (half(blocks[:, 82:84]) * (packed >> 4).float()).unsqueeze(2)
    quants = fields(blocks[:, 16:80].reshape(n, 2, 32), _PAIRS, 3).view(n, 16, 16)
    return (scale * quants.float() - minimum).view(n, 256)


def q3_k(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 110]``: 32 bytes of inverted high bits, 64 of 2-bit quants, 12 of 6-bit scales, d."""
    n = blocks.shape[0]
    high = fields(blocks[:, :32].reshape(n, 1, 32), _BITS, 1).view(n, 16, 16) ^ 1
    low = fields(blocks[:, 32:96].reshape(n, 2, 32), _PAIRS, 3).view(n, 16, 16)
    scale_low = fields(blocks[:, 96:104].reshape(n, 1, 8), _NIBBLES, 0x0F).view(n, 16)
    scale_high = fields(blocks[:, 104:108].reshape(n, 1, 4), _PAIRS, 3).view(n, 16)
    scale = half(blocks[:, 108:110]) * ((scale_low | (scale_high << 4)).float() - 32.0)
    quants = low.float() - (high << 2).float()
    return (scale.unsqueeze(2) * quants).view(n, 256)


def q4_k(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 144]``: d, dmin, 12 bytes of 6-bit scales and minima, 128 of 4-bit quants."""
    n = blocks.shape[0]
    scale, minimum = _scales_and_minima(blocks[:, :16])
    quants = fields(blocks[:, 16:144].reshape(n, 4, 32), _NIBBLES, 0x0F).view(n, 8, 32)
    return (scale * quants.float() - minimum).view(n, 256)


def q5_k(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 176]``: as ``q4_k`` with 32 bytes of fifth bits before the quants."""
    n = blocks.shape[0]
    scale, minimum = _scales_and_minima(blocks[:, :16])
    high = fields(blocks[:, 16:48].reshape(n, 1, 32), _BITS, 1).view(n, 8, 32)
    low = fields(blocks[:, 48:176].reshape(n, 4, 32), _NIBBLES, 0x0F).view(n, 8, 32)
    return (scale * (low | (high << 4)).float() - minimum).view(n, 256)


def q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 210]``: 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, d."""
    n = blocks.shape[0]
    low = fields(blocks[:, :128].reshape(n, 2, 64), _NIBBLES, 0x0F).view(n, 16, 16)
    high = fields(blocks[:, 128:192].reshape(n, 2, 32), _PAIRS, 3).view(n, 16, 16)
    scale = half(blocks[:, 208:210]) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    quants = (low | (high << 4)).float() - 32.0
    return (scale.unsqueeze(2) * quants).view(n, 256)


def _scales_and_minima(head: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """d, dmin and 12 packed bytes, ``[n, 16]``, to the scales and minima of 8 sub-blocks, ``[n, 8, 1]`` float32 each.

    The first four of each are the low six bits of bytes 0 to 3 and 4 to 7; the last four take their low nibble from
    bytes 8 to 11 and their top two bits from those of bytes 0 to 3 and 4 to 7.
    """
    first, second, third = head[:, 4:8], head[:, 8:12], head[:, 12:16]
    scale = torch.cat((first & 0x3F, (third & 0x0F) | ((first >> 2) & 0x30)), dim=1)
    minimum = torch.cat((second & 0x3F, (third >> 4) | ((second >> 2) & 0x30)), dim=1)
    return (half(head[:, :2]) * scale.float()).unsqueeze(2), (half(head[:, 2:4]) * minimum.float()).unsqueeze(2)
