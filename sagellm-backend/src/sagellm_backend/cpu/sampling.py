"""Sampling over a batch: each row pays only for what it asks.

Every filter is a bound on the scaled logits, found among the few largest values and applied to the whole row; the draw
walks token ids in ascending order. Reductions run along one row at widths that only that row decides, so a row's
result does not depend on its neighbours. Knows nothing of requests or seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sagellm_protocol.backend import RowLogprobs, Sampled, SamplingBatch

from .edits import edit_logits
from .topvalues import top_values

_TILE = 64
"""Token ids whose probabilities are summed as one, so that a draw walks V / 64 sums and then 64 tokens."""
_FIRST_LOOK = 128
"""Largest values looked at first when only top-p asks for some."""


def sample(logits: torch.Tensor, batch: SamplingBatch) -> Sampled:
    """Draw one token from each row of ``[R, V]``; overwrites ``logits``."""
    logits = logits.float()
    wanted = [row for row, top in enumerate(batch.logprobs) if top is not None]
    raw = logits[wanted] if wanted else logits
    edit_logits(logits, batch)
    drawn = [row for row, temperature in enumerate(batch.temperature) if temperature > 0]
    if not drawn:
        tokens = logits.argmax(-1).tolist()
    else:
        tokens = [0] * logits.shape[0]
        greedy = [row for row, temperature in enumerate(batch.temperature) if temperature == 0]
        if greedy:
            for row, token in zip(greedy, logits[greedy].argmax(-1).tolist(), strict=True):
                tokens[row] = token
        for row, token in zip(drawn, _draw(logits, batch, drawn), strict=True):
            tokens[row] = token
    reports: list[RowLogprobs | None] = [None] * len(tokens)
    if wanted:
        tops = [batch.logprobs[row] or 0 for row in wanted]
        for row, report in zip(wanted, logprobs_of(raw, [tokens[row] for row in wanted], tops), strict=True):
            reports[row] = report
    return Sampled(token_ids=tokens, logprobs=reports)


def logprobs_of(raw: torch.Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> list[RowLogprobs]:
    """Log-probabilities of one token a row of ``[R, V]`` float32, each with its ``tops`` likeliest."""
    logprobs = torch.log_softmax(raw, dim=-1)
    own = logprobs.gather(1, torch.tensor(token_ids)[:, None])
    ranks = ((logprobs > own).sum(-1) + 1).tolist()
    return [
        RowLogprobs(logprob=value, rank=rank, top=_likeliest(row, top))
        for row, value, rank, top in zip(logprobs, own[:, 0].tolist(), ranks, tops, strict=True)
    ]


def _likeliest(logprobs: torch.Tensor, top: int) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens of a row ``[V]``; equals in order of id, also where the list ends among them."""
    if top == 0:
        return ()
    bound = top_values(logprobs[None], min(top, logprobs.shape[0]))[0, -1]
    ids = (logprobs >= bound).nonzero()[:, 0]
    pairs = zip(ids.tolist(), logprobs[ids].tolist(), strict=True)
    return tuple(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:top])


def _draw(logits: torch.Tensor, batch: SamplingBatch, rows: Sequence[int]) -> list[int]:
    """Tokens of the rows that are not greedy."""
    scaled = logits if len(rows) == logits.shape[0] else logits[list(rows)]
    # Relative to the largest, a tiny temperature cannot overflow.
    scaled = scaled - scaled.amax(-1, keepdim=True)
    temperatures = torch.tensor([batch.temperature[row] for row in rows])
    scaled.div_(temperatures[:, None])
    _filter(scaled, batch, rows)
    uniform = torch.tensor([batch.uniform[row] for row in rows], dtype=torch.float64)
    tokens: list[int] = _inverse_cdf(scaled.exp_(), uniform).tolist()
    return tokens


def _filter(scaled: torch.Tensor, batch: SamplingBatch, rows: Sequence[int]) -> None:
    """Put what top-k, top-p and min-p drop of scaled logits ``[R, V]`` at minus infinity."""
    bounds = [math.log(batch.min_p[row]) if batch.min_p[row] > 0 else -math.inf for row in rows]
    counts: dict[int, int] = {}
    for place, (bound, count) in _last_kept(scaled, batch, rows).items():
        if bound >= bounds[place]:
            bounds[place] = bound
            counts[place] = count
    if max(bounds) == -math.inf:
        return
    limits = torch.tensor(bounds)[:, None]
    if counts:
        left = (scaled >= limits).sum(-1).tolist()
        for place, count in counts.items():
            # Among equals the lower ids are kept.
            equals = (scaled[place] == bounds[place]).nonzero()[:, 0]
            scaled[place, equals[len(equals) - (left[place] - count) :]] = -math.inf
    scaled.masked_fill_(scaled < limits, -math.inf)


def _last_kept(scaled: torch.Tensor, batch: SamplingBatch, rows: Sequence[int]) -> dict[int, tuple[float, int]]:
    """By place in ``rows``, of those that top-k or top-p cuts: the smallest scaled logit kept, and how many are."""
    size = scaled.shape[1]
    looks: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        if 0 < batch.top_k[row] < size:
            looks.setdefault(min(size, _width(batch.top_k[row])), []).append(place)
        elif batch.top_p[row] < 1:
            looks.setdefault(min(size, _FIRST_LOOK), []).append(place)
    found: dict[int, tuple[float, int]] = {}
    while looks:
        width, places = looks.popitem()
        largest = top_values(scaled if len(places) == len(rows) else scaled[places], width)  # [n, width], descending
        for values, place in zip(largest, places, strict=True):
            row = rows[place]
            count = _count_kept(values, scaled[place], batch.top_k[row], batch.top_p[row])
            if count is None:
                # The whole of top-p does not lie among these: look further, in the end at everything.
                looks.setdefault(min(size, width * 16), []).append(place)
            else:
                found[place] = values[count - 1].item(), count
    return found


def _width(top_k: int) -> int:
    """Values looked at for a top-k: a power of two, so that rows of like k share a call and none depends on another."""
    return max(_TILE, 1 << (top_k - 1).bit_length())


def _count_kept(largest: torch.Tensor, scaled: torch.Tensor, top_k: int, top_p: float) -> int | None:
    """How many of a row's ``largest`` values are kept; ``None`` when they do not reach top-p."""
    size = scaled.shape[0]
    limited = 0 < top_k < size
    if limited:
        largest = largest[:top_k]
    if top_p >= 1:
        return len(largest)
    weights = largest.double().exp()
    total = weights.sum() if limited else scaled.exp().sum(dtype=torch.float64)
    # A token stays while those before it fall short.
    before = weights.cumsum(-1) - weights
    kept = int((before < top_p * total).sum())
    return kept if limited or kept < len(weights) or len(weights) == size else None


def _inverse_cdf(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first token of each row at which the running sum of ``weights`` passes ``uniform`` times their total.

    Args:
        weights: ``[R, V]`` float32, not negative, not all zero.
        uniform: ``[R]`` float64 in [0, 1).

    Returns:
        ``[R]`` int64.
    """
    rows, size = weights.shape
    if size % _TILE:
        weights = torch.nn.functional.pad(weights, (0, -size % _TILE))
    tiles = weights.view(rows, -1, _TILE)
    ends = tiles.sum(-1).double().cumsum(-1)  # [R, V / tile]
    target = uniform[:, None] * ends[:, -1:]
    # A tile of weight zero ends where the one before it does, so the first that passes the target is never one.
    tile = _first_past(ends, target)
    before = ends.gather(1, (tile - 1).clamp_(min=0)).masked_fill_(tile == 0, 0.0)
    inside = tiles.gather(1, tile[:, :, None].expand(-1, 1, _TILE))[:, 0].double().cumsum(-1)
    place = _first_past(inside, target - before)
    return (tile * _TILE + place)[:, 0]


def _first_past(ends: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Index of the first of ``ends`` greater than ``target``, ``[R, 1]``; if by rounding none is, of the last rise."""
    rise = torch.searchsorted(ends, ends[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(ends, target.contiguous(), right=True), rise)
