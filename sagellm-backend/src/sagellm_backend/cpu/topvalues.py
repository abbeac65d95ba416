"""The largest values of a long row, without sorting it. Knows nothing of sampling."""

from __future__ import annotations

from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

_DEPTH = 64


def floor_of_largest(x: Floats, count: int) -> float:
    """A value that at least ``count`` of ``x`` reach, and few more.

    The row is read as columns of 64: the ``count`` largest column maxima are ``count`` values of the row. Where columns
    are fewer than that, the ``count``-th largest value itself.

    Args:
        x: ``[V]``, no NaN.
        count: 1 to V.
    """
    columns = len(x) // _DEPTH
    if count <= columns:
        x = x[: columns * _DEPTH].reshape(_DEPTH, columns).max(0)
    return float(np.partition(x, len(x) - count)[len(x) - count])


def first_of(x: Floats, ids: Ints, count: int) -> Ints:
    """Of ``ids``, those of the ``count`` largest values of ``x``; among equals the lower ids.

    Args:
        x: ``[V]``.
        ids: Ascending.
        count: 1 to the number of ``ids``.

    Returns:
        ``[count]``, ascending.
    """
    surplus = len(ids) - count
    if not surplus:
        return ids
    values = x[ids]
    bound = np.partition(values, surplus)[surplus]
    ids, values = ids[values >= bound], values[values >= bound]
    surplus = len(ids) - count
    if not surplus:
        return ids
    equals = np.flatnonzero(values == bound)
    return np.delete(ids, equals[len(equals) - surplus :])
