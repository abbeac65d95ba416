"""What adapters add to products: low-rank terms, over the rows that go through each.

Knows nothing of where adapters come from, nor which weight they are for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sagellm_protocol.backend import AdaptedRows


def add_low_rank(y: torch.Tensor, x: torch.Tensor, adapters: Sequence[AdaptedRows[torch.Tensor]]) -> torch.Tensor:
    """Add ``x @ down.T @ up.T`` to the rows of each adapter, in place.

    Two small products an adapter, in the adapter's own type; what they give is rounded to ``y``'s.

    Args:
        y: ``[T, O]``.
        x: ``[T, E]``.
        adapters: Runs of rows, with what each goes through.

    Returns:
        ``y``.
    """
    for rows in adapters:
        low_rank, first = rows.low_rank, 0
        low = x[rows.begin : rows.end].to(low_rank.down.dtype) @ low_rank.down.T  # [t, R]
        for up, begin in zip(low_rank.up, low_rank.begins, strict=True):
            outputs, rank = up.shape
            # A view of y: adding to it adds to y.
            part = y[rows.begin : rows.end, begin : begin + outputs]
            part += low[:, first : first + rank] @ up.T
            first += rank
    return y
