"""What each layer of a model keeps and sees, found by running it; and whether paging changes what it computes.

A few tokens are run through the modelling code as it is, and what attention is called with is written down. Then they
are run over a paged cache, two sequences in a step and in chunks, and must give the same: modelling code that mixes
tokens anywhere but in attention, or counts them by itself, would not. What shows only far beyond a few tokens is not
found so. Knows nothing of how a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sagellm_protocol.backend import AttentionBatch, Backend, KVSpec
from sagellm_protocol.devices import DType

from .attention import Call, Record

PROMPTS = (7, 4)
"""Tokens of the sequences that are tried."""
_SCHEDULE = (((0, 4), (1, 3)), ((1, 1), (0, 2)), ((0, 1),))
"""For each step, the sequences it computes and how many tokens of each."""
_BLOCK = 4
_AGREEING = 0.75
"""Share of tokens that must agree: where experts are nearly equal, rounding may choose another for one of them."""
_TOLERANCE = {torch.float32: 1e-3}
_TOLERANCE_ROUNDED = 0.1
"""Relative, of a token's logits; in types of fewer bits, where they are products of what was rounded in every layer."""


class Unsuitable(Exception):
    """The model cannot be run over a paged cache; the message says why."""


def specs_of(record: Record, context: int) -> tuple[dict[int, int], tuple[KVSpec, ...]]:
    """Of each layer with attention its place in the cache, and what is kept there.

    Args:
        record: Of one pass.
        context: Longest sequence that will be run.

    Raises:
        Unsuitable: For a layer that attends otherwise than causally to all, a window or a chunk.
    """
    if not record.calls:
        raise Unsuitable("its layers do not call attention by the AttentionInterface")
    numbers = sorted(record.calls)
    return {number: place for place, number in enumerate(numbers)}, tuple(
        _spec(number, record.calls[number], context) for number in numbers
    )


def _spec(number: int, calls: Sequence[Call], context: int) -> KVSpec:
    if number < 0 or len(calls) > 1:
        raise Unsuitable("a layer has no number" if number < 0 else f"layer {number} attends {len(calls)} times")
    call = calls[0]
    if call.unknown:
        raise Unsuitable(f"attention of layer {number} is given {', '.join(call.unknown)}, which is not known here")
    if call.rule is None:
        raise Unsuitable(f"layer {number} attends to later tokens too, without a mask")
    window, chunked = _visible(number, call.rule, context)
    return KVSpec(call.kv_heads, call.key_dim, call.value_dim, window, sinks=call.sinks, chunked=chunked)


def _visible(number: int, rule: Callable[..., torch.Tensor], context: int) -> tuple[int | None, bool]:
    """The window of a mask's rule, and whether it is one of chunks; both are inferred and then held against it."""
    zero, keys = torch.tensor(0), torch.arange(context)

    def row(query: int) -> torch.Tensor:
        return rule(zero, zero, torch.tensor(query), keys).broadcast_to(context)

    blind = (~rule(zero, zero, keys, zero).broadcast_to(context)).nonzero()
    size = int(blind[0]) if len(blind) else context  # the first query that does not see the first key
    window = size if 0 < size < context else None
    chunked = window is not None and int(row(window).sum()) == 1
    for query in {0, min(1, context - 1), context // 2, context - 1, *(n for n in (size - 1, size) if n < context)}:
        first = 0
        if window is not None:
            first = query // window * window if chunked else max(0, query + 1 - window)
        if not torch.equal(row(query), (keys >= first) & (keys <= query)):
            raise Unsuitable(f"layer {number} has a mask that is neither causal, nor a window, nor chunks")
    return window, chunked


def prompts(vocabulary: int) -> list[list[int]]:
    """Token ids to try, far from each other in the vocabulary."""
    stride = max(1, vocabulary // (sum(PROMPTS) + 1))
    ids = iter(range(stride, vocabulary, stride))
    return [[next(ids, 0) for _ in range(length)] for length in PROMPTS]


def paged(
    run: Callable[..., torch.Tensor], ops: Backend[torch.Tensor], specs: Sequence[KVSpec], dtype: DType
) -> Callable[[Sequence[Sequence[int]]], list[torch.Tensor]]:
    """What computes the logits of prompts over a paged cache, ``[L, V]`` each.

    Args:
        run: From ids, positions, cache and plan to logits, ``[T, V]``.
        ops: The backend.
        specs: What layers keep.
        dtype: Type it is kept in.
    """

    def compute(sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        groups = len(dict.fromkeys(specs))
        each = -(-max(PROMPTS) // _BLOCK)
        tables = [[list(range(number * each, (number + 1) * each)) for number in range(len(sequences))]] * groups
        cache = ops.allocate_kv(specs, each * len(sequences), _BLOCK, dtype)
        done, logits = [0] * len(sequences), [[] for _ in sequences]  # type: ignore[var-annotated]
        for step in _SCHEDULE:
            ids = [token for number, count in step for token in sequences[number][done[number] : done[number] + count]]
            positions = [done[number] + offset for number, count in step for offset in range(count)]
            for number, count in step:
                done[number] += count
            batch = AttentionBatch(
                [count for _, count in step],
                [done[number] for number, _ in step],
                [[table[number] for number, _ in step] for table in tables],
            )
            plan = ops.plan_attention(cache, batch)
            rows = run(ops.from_host(ids, DType.INT32), ops.from_host(positions, DType.INT32), cache, plan)
            for (number, _), part in zip(step, rows.split([count for _, count in step]), strict=True):
                logits[number].append(part)
        return [torch.cat(parts) for parts in logits]

    return compute


def compare(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> None:
    """Hold logits of the paged run against those of the modelling code alone.

    Raises:
        Unsuitable: When they differ by more than rounding.
    """
    theirs, ours = torch.cat(list(expected)).float(), torch.cat(list(found)).float()
    off = (ours - theirs).norm(dim=1) / theirs.norm(dim=1).clamp_min(1e-9)
    tolerance = _TOLERANCE.get(expected[0].dtype, _TOLERANCE_ROUNDED)
    worst = float(off.quantile(_AGREEING))
    if not worst <= tolerance:
        raise Unsuitable(
            f"batched and in chunks it computes something else (logits differ by {worst:.1%} of their size):"
            " its modelling code mixes or counts tokens outside of attention"
        )
