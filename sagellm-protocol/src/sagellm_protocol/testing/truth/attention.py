"""Attention of one sequence at a time, causal or in both directions; paging is the business of whoever calls.

Knows nothing of caches.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .operations import softmax

Floats = npt.NDArray[np.float64]


def paged_attention(
    q: Floats,
    keys: Floats,
    values: Floats,
    *,
    scale: float,
    window: int | None = None,
    chunked: bool = False,
    softcap: float | None = None,
    sinks: Floats | None = None,
) -> Floats:
    """Attend the last tokens of a sequence to all of it.

    Args:
        q: Queries of the newest tokens, ``[Q, Hq, D]``.
        keys: Of the whole sequence, ``[C, Hkv, D]``, C at least Q.
        values: ``[C, Hkv, Dv]``.
        scale: Multiplies the scores.
        window: Tokens back that are visible, the token itself included.
        chunked: Of those, only the ones in the same run of ``window`` tokens.
        softcap: Scores become ``softcap * tanh(score / softcap)``.
        sinks: For each query head a score that takes its share and gives no value, ``[Hq]``.

    Returns:
        ``[Q, Hq, Dv]``.
    """
    count, heads, _ = q.shape
    context, kv_heads, value_dim = values.shape
    result = np.zeros((count, heads, value_dim))
    for row in range(count):
        position = context - count + row
        first = 0 if window is None else max(0, position - window + 1)
        if window is not None and chunked:
            first = position // window * window
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = keys[first : position + 1, shared] @ q[row, head] * scale
            if softcap is not None:
                scores = softcap * np.tanh(scores / softcap)
            if sinks is not None:
                scores = np.append(scores, sinks[head])
            shares = softmax(scores)[: position + 1 - first]
            result[row, head] = shares @ values[first : position + 1, shared]
    return result


def segment_attention(q: Floats, keys: Floats, values: Floats, *, scale: float) -> Floats:
    """Attend each token of a sequence to all of it.

    Args:
        q: ``[L, Hq, D]``.
        keys: ``[L, Hkv, D]``.
        values: ``[L, Hkv, D]``.
        scale: Multiplies the scores.

    Returns:
        ``[L, Hq, D]``.
    """
    group = q.shape[1] // keys.shape[1]
    result = np.zeros_like(q)
    for head in range(q.shape[1]):
        scores = q[:, head] @ keys[:, head // group].T * scale
        result[:, head] = softmax(scores) @ values[:, head // group]
    return result
