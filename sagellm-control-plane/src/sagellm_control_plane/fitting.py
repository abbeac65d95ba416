"""Least squares without negative coefficients, for a handful of columns. Knows nothing of what they mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .board import Floats


def non_negative(a: Floats, b: Floats) -> Sequence[float]:
    """Least squares over every subset of the columns, the best whose coefficients are none of them negative.

    With few columns (four make fifteen subsets) trying all is exact and needs no solver.

    Args:
        a: ``[N, C]`` float64.
        b: ``[N]`` float64.

    Returns:
        C coefficients.
    """
    scale = np.maximum(np.abs(a).max(axis=0), 1e-12)
    best, found = np.inf, np.zeros(a.shape[1])
    for chosen in range(1, 2 ** a.shape[1]):
        columns = [i for i in range(a.shape[1]) if chosen >> i & 1]
        solution, *_ = np.linalg.lstsq(a[:, columns] / scale[columns], b, rcond=None)
        if (solution < 0).any():
            continue
        error = float(((a[:, columns] / scale[columns] @ solution - b) ** 2).sum())
        if error < best - 1e-18:
            best, found = error, np.zeros(a.shape[1])
            found[columns] = solution / scale[columns]
    return [float(value) for value in found]
