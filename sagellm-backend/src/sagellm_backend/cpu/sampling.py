"""Sampling over a batch: each row pays only for what it asks.

What runs where there are no native kernels; ``native/sampling.py`` draws the same with them.

Row by row in NumPy: a row of scores stays in the processor's cache from its first reduction to its draw, nothing waits
for a second thread (a row takes some tens of microseconds, waking a thread as long), and what a row draws cannot depend
on its neighbours. No filter sorts the vocabulary: each looks at the few values that may be kept. Knows nothing of
requests or seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from sagellm_protocol.backend import RowLogprobs, Sampled, SamplingBatch
from sagellm_protocol.errors import ErrorCode, SageLLMError

from .edits import edit_logits, edited_rows
from .topvalues import Floats, Ints, first_of, floor_of_largest

COLDEST = 1e-30
"""Smallest temperature that float32 tells from 0 with room to divide by; one below draws as this does."""
_TILE = 64
"""Token ids whose probabilities are summed as one, so that a draw walks V / 64 sums and then 64 tokens."""
_FIRST_LOOK = 128
"""Largest values looked at first when only top-p asks for some."""
_BUCKETS, _BUCKETS_A_NAT = 1024, 32
"""What top-p sorts a row into when it keeps more; the last bucket takes weights below a millionth of a millionth."""


def sample(logits: torch.Tensor, batch: SamplingBatch) -> Sampled:
    """Draw one token from each row of ``[R, V]``; overwrites ``logits``.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for edits that cannot be made; ``INTERNAL`` for scores that are no numbers.
    """
    scores: Floats = logits.float().contiguous().numpy()
    rows = len(scores)
    reports: list[RowLogprobs | None] = [None] * rows
    wanted = [row for row, top in enumerate(batch.logprobs) if top is not None]
    edited = edited_rows(batch)
    raw = scores[wanted] if wanted and edited else scores
    edit_logits((scores[row] for row in edited), batch, edited)
    if batch.temperature.count(0) == rows:
        tokens = _greedy(scores)
    else:
        tokens = [_token(one, batch, row) for row, one in enumerate(scores)]
    for place, row in enumerate(wanted):
        reports[row] = _report(raw[place if edited else row], tokens[row], batch.logprobs[row] or 0)
    return Sampled(token_ids=tokens, logprobs=reports)


def logprobs_of(raw: torch.Tensor, token_ids: Sequence[int], top: int) -> list[RowLogprobs]:
    """Log-probabilities of one token a row of ``[R, V]`` float32, each with its ``top`` likeliest."""
    scores: Floats = raw.contiguous().numpy()
    return [_report(row, token, top) for row, token in zip(scores, token_ids, strict=True)]


def _report(raw: Floats, token: int, top: int) -> RowLogprobs:
    largest = raw.max()
    if not math.isfinite(largest):
        return RowLogprobs(logprob=math.nan, rank=1, top=())
    # Ranked before the sum is taken off: rounding must not make two scores equal.
    related = raw - largest
    log_total = np.log(np.exp(related).sum())
    own = related[token]
    return RowLogprobs(
        logprob=(own - log_total).item(),
        rank=int(np.count_nonzero(related > own)) + 1,
        top=_likeliest(related, top, log_total),
    )


def _likeliest(related: Floats, top: int, log_total: np.float32) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens of a row ``[V]``; equals in order of id, also where the list ends among them."""
    if top == 0:
        return ()
    top = min(top, len(related))
    ids = first_of(related, np.flatnonzero(related >= np.float32(floor_of_largest(related, top))), top)
    ids = ids[np.argsort(-related[ids], kind="stable")]
    return tuple(zip(ids.tolist(), (related[ids] - log_total).tolist(), strict=True))


def _greedy(scores: Floats) -> list[int]:
    tokens: list[int] = scores.argmax(-1).tolist()  # of equals the first; a NaN before all else
    if any(math.isnan(scores.item(row, token)) for row, token in enumerate(tokens)):
        raise no_numbers()
    return tokens


def _token(scores: Floats, batch: SamplingBatch, row: int) -> int:
    if batch.temperature[row] == 0:
        return _greedy(scores[None])[0]
    # Relative to the largest, a tiny temperature cannot overflow; one that float32 rounds to 0 would give 0 / 0.
    largest = scores.max()
    if not math.isfinite(largest):
        raise no_numbers()
    scaled = scores - largest
    scaled /= np.float32(max(batch.temperature[row], COLDEST))
    top_k, top_p, min_p = batch.top_k[row], batch.top_p[row], batch.min_p[row]
    kept = _kept(scaled, top_k if top_k < len(scaled) else 0, top_p, min_p)
    if kept is None:
        return _draw_of_all(np.exp(scaled, out=scaled), batch.uniform[row])
    return int(kept[_first_past(np.exp(scaled[kept]).cumsum(dtype=np.float64), batch.uniform[row])])


def _kept(scaled: Floats, top_k: int, top_p: float, min_p: float) -> Ints | None:
    """Ascending ids of what top-k, top-p and min-p leave of scaled logits ``[V]``; ``None`` for all."""
    kept: Ints | None = None
    if top_k:
        kept = first_of(scaled, np.flatnonzero(scaled >= np.float32(floor_of_largest(scaled, top_k))), top_k)
        if top_p < 1:
            weights = np.exp(scaled[kept]).astype(np.float64)
            kept = _nucleus(scaled, kept, top_p * weights.sum())
    elif top_p < 1:
        kept = _nucleus_of_all(scaled, top_p)
    if min_p > 0:
        bound = np.float32(math.log(min_p))
        kept = np.flatnonzero(scaled >= bound) if kept is None else kept[scaled[kept] >= bound]
    return kept


def _nucleus_of_all(scaled: Floats, top_p: float) -> Ints:
    """Ascending ids of the fewest likeliest that hold ``top_p`` of a row ``[V]`` together."""
    weights = np.exp(scaled)
    mass = top_p * float(weights.sum(dtype=np.float64))
    if len(scaled) > _FIRST_LOOK * _TILE:
        ids = np.flatnonzero(scaled >= np.float32(floor_of_largest(scaled, _FIRST_LOOK)))
        if len(ids) <= 4 * _FIRST_LOOK and weights[ids].sum(dtype=np.float64) >= mass:
            return _nucleus(scaled, ids, mass)
    # Sorted into buckets by size, all but one of which are kept or dropped whole.
    bucket = np.minimum(scaled * np.float32(-_BUCKETS_A_NAT), np.float32(_BUCKETS - 1)).astype(np.int64)
    ends = np.bincount(bucket, weights, _BUCKETS).cumsum()
    cut = min(int(ends.searchsorted(mass)), _BUCKETS - 1)
    kept = bucket < cut
    split = np.flatnonzero(bucket == cut)
    if len(split):
        kept[_nucleus(scaled, split, mass - (ends[cut - 1] if cut else 0.0))] = True
    return np.flatnonzero(kept)


def _nucleus(scaled: Floats, ids: Ints, mass: float) -> Ints:
    """Of ascending ``ids``, the fewest likeliest whose weights reach ``mass``, ascending."""
    weights = np.exp(-np.sort(-scaled[ids])).astype(np.float64)
    ends = weights.cumsum()
    # A token stays while those before it fall short.
    count = int(np.count_nonzero(ends - weights < mass))
    return first_of(scaled, ids, count)


def _draw_of_all(weights: Floats, uniform: float) -> int:
    """The first id at which the running sum of ``weights [V]`` passes ``uniform`` times their total."""
    whole = len(weights) // _TILE * _TILE
    sums = weights[:whole].reshape(-1, _TILE).sum(1)
    if whole < len(weights):
        sums = np.append(sums, weights[whole:].sum())
    ends = sums.cumsum(dtype=np.float64)
    # A tile of weight zero ends where the one before it does, so the first that passes the target is never one.
    tile = _first_past(ends, uniform)
    before = ends[tile - 1] if tile else 0.0
    inside = weights[tile * _TILE : (tile + 1) * _TILE].cumsum(dtype=np.float64)
    return tile * _TILE + _first_past(inside, (uniform * ends[-1] - before) / inside[-1])


def _first_past(ends: np.ndarray[tuple[int], np.dtype[np.float64]], share: float) -> int:
    """Index of the first of ``ends`` greater than ``share`` of the last; if by rounding none is, of the last rise."""
    place = int(ends.searchsorted(share * ends[-1], side="right"))
    return min(place, int(ends.searchsorted(ends[-1])))


def no_numbers() -> SageLLMError:
    """What to raise where nothing can be drawn."""
    return SageLLMError(ErrorCode.INTERNAL, "the model's scores are no numbers")
