"""The largest values of long rows, without sorting them. Knows nothing of sampling."""

from __future__ import annotations

import torch

_TILE = 64


def top_values(x: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` largest values of each row, descending.

    The ``count`` largest lie in the ``count`` tiles of the largest maxima, so a row is read once and only those are
    sorted.

    Args:
        x: ``[R, V]``.
        count: At most V.

    Returns:
        ``[R, count]``.
    """
    _rows, size = x.shape
    whole = size // _TILE * _TILE
    if count * _TILE * 2 > whole:
        return torch.sort(x, dim=-1, descending=True).values[:, :count]
    tiles = x[:, :whole].unflatten(1, (-1, _TILE))  # [R, V / tile, tile]
    best = tiles.amax(-1).topk(count, dim=-1, sorted=False).indices
    few = tiles.gather(1, best[:, :, None].expand(-1, -1, _TILE)).flatten(1)
    if whole < size:
        few = torch.cat((few, x[:, whole:]), dim=1)
    largest: torch.Tensor = few.topk(count, dim=-1).values
    return largest
