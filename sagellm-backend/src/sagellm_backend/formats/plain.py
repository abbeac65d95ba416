"""Formats whose block is one number. Knows nothing of rows or shapes."""

from __future__ import annotations

import torch


def f32(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 4]`` uint8 to ``[n, 1]`` float32."""
    return blocks.view(torch.float32)


def f16(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 2]`` uint8 to ``[n, 1]`` float32."""
    return blocks.view(torch.float16).float()


def bf16(blocks: torch.Tensor) -> torch.Tensor:
    """``[n, 2]`` uint8 to ``[n, 1]`` float32."""
    return blocks.view(torch.bfloat16).float()
