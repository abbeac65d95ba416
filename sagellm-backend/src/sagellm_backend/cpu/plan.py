"""A step's attention, planned on the host: which cache rows are written, and which sequences are attended together.

Decoding sequences of like length share one call over a rectangle of gathered rows; a prompt attends alone, to its own
new keys when nothing of it is cached yet. Pure: integers in, index tensors and masks out. Knows nothing of heads or
values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sagellm_backend.paged import PagedKV
from sagellm_protocol.backend import AttentionBatch, KVSpec

_SPARE_SHARE = 0.25
"""Largest share of a rectangle that may be padding …"""
_SPARE_ROWS = 256
"""… unless it is fewer rows than this, which cost less than another call."""
_SPAN_BYTES = 8 << 20
"""Most that one call gathers of several sequences: past the processor's cache it would be read from memory again."""

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Span:
    """Sequences attended in one call.

    Attributes:
        tokens: Their rows among the step's, a slice where they lie together, else ``[n]`` int64.
        count: Sequences, n.
        query_len: New tokens of each.
        keys: Rows of the pool to attend to: a slice where they lie together, else ``[n * length]`` int64; ``None``
            for the step's own keys and values.
        length: Keys of each, after padding.
        mask: Added to scores, ``[n, 1, query_len, length]`` float32, or ``None``.
        causal: Whether query ``i`` sees keys up to ``i``; only without a mask.
    """

    tokens: slice | torch.Tensor
    count: int
    query_len: int
    keys: slice | torch.Tensor | None
    length: int
    mask: torch.Tensor | None
    causal: bool


@dataclass(frozen=True)
class GroupPlan:
    """What layers of one spec do in a step.

    Attributes:
        slots: Pool row of each of the step's tokens, ``[T]`` int64.
        spans: Together they cover every token once.
    """

    slots: torch.Tensor
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class StepPlan:
    """A step for each distinct spec of a pool.

    Attributes:
        groups: One a group of layers with equal specs.
    """

    groups: tuple[GroupPlan, ...]


def plan_step(cache: PagedKV, batch: AttentionBatch) -> StepPlan:
    """Plan a step for each distinct spec of ``cache``."""
    return StepPlan(
        tuple(
            _plan_group(spec, cache.block_size, _SPAN_BYTES // cache.row_bytes(group), batch, tables)
            for group, (spec, tables) in enumerate(zip(cache.group_specs, batch.block_tables, strict=True))
        )
    )


@dataclass(frozen=True)
class _Sequence:
    first_token: int
    query_len: int
    context_len: int
    first_key: int
    table: Ints

    def rows(self, block_size: int, start: int, stop: int) -> Ints:
        """Pool rows of positions ``start`` to ``stop``."""
        blocks = self.table[start // block_size : (stop - 1) // block_size + 1]
        rows = (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)
        skip = start - start // block_size * block_size
        return rows[skip : skip + stop - start]

    @property
    def num_keys(self) -> int:
        return self.context_len - self.first_key


def _plan_group(
    spec: KVSpec, block_size: int, most_rows: int, batch: AttentionBatch, tables: Sequence[Sequence[int]]
) -> GroupPlan:
    sequences: list[_Sequence] = []
    token, window = 0, spec.window
    for new, total, table in zip(batch.query_lens, batch.context_lens, tables, strict=True):
        whole = _Sequence(token, new, total, 0, np.asarray(table, dtype=np.int64))
        if window is None:
            sequences.append(whole)
        elif spec.chunked:
            sequences += _by_chunk(whole, window)
        else:  # from the earliest key that the first new token sees
            sequences.append(replace(whole, first_key=max(0, total - new + 1 - window)))
        token += new
    written = [s.rows(block_size, s.context_len - s.query_len, s.context_len) for s in sequences if s.query_len]
    slots = torch.from_numpy(np.concatenate(written) if written else np.empty(0, dtype=np.int64))
    decoding = [s for s in sequences if s.query_len == 1]
    spans = [_decode_span(members, block_size) for members in _alike(decoding, most_rows)]
    spans += [_prompt_span(s, None if spec.chunked else window, block_size) for s in sequences if s.query_len > 1]
    return GroupPlan(slots, tuple(spans))


def _by_chunk(sequence: _Sequence, size: int) -> Iterator[_Sequence]:
    """A sequence's new tokens chunk by chunk: within one they are a sequence that begins where it does."""
    start, end = sequence.context_len - sequence.query_len, sequence.context_len
    first_token = sequence.first_token
    while start < end:
        chunk = start // size * size
        stop = min(end, chunk + size)
        yield _Sequence(first_token, stop - start, stop, chunk, sequence.table)
        first_token += stop - start
        start = stop


def _alike(sequences: list[_Sequence], most_rows: int) -> Iterator[list[_Sequence]]:
    """Split by length so that little of each rectangle is padding, and none is large; members in order of token."""
    ordered = sorted(sequences, key=lambda s: s.num_keys, reverse=True)
    members: list[_Sequence] = []
    spare = 0
    for sequence in ordered:
        if members:
            longest = members[0].num_keys
            spare += longest - sequence.num_keys
            rows = longest * (len(members) + 1)
            if rows > most_rows or spare > max(_SPARE_ROWS, _SPARE_SHARE * rows):
                yield sorted(members, key=lambda s: s.first_token)
                members, spare = [], 0
        members.append(sequence)
    if members:
        yield sorted(members, key=lambda s: s.first_token)


def _decode_span(members: list[_Sequence], block_size: int) -> Span:
    first = members[0]
    count = len(members)
    lengths = np.array([s.num_keys for s in members])
    length = int(lengths.max())
    together = members[-1].first_token - first.first_token == count - 1
    tokens: slice | torch.Tensor = slice(first.first_token, first.first_token + count)
    if not together:
        tokens = torch.tensor([s.first_token for s in members])
    keys: slice | torch.Tensor
    if count == 1:
        keys = _lying_together(first.rows(block_size, first.first_key, first.context_len))
    else:
        # Padding repeats a sequence's own last row: nothing of a neighbour's can reach it, not even a NaN.
        table = np.empty((count, length), dtype=np.int64)
        for row, member in zip(table, members, strict=True):
            own = member.rows(block_size, member.first_key, member.context_len)
            row[: len(own)] = own
            row[len(own) :] = own[-1]
        keys = torch.from_numpy(table.reshape(-1))
    mask = None
    if int(lengths.min()) != length:
        hidden = torch.from_numpy(np.arange(length) >= lengths[:, None])[:, None, None]
        mask = torch.zeros(count, 1, 1, length).masked_fill_(hidden, float("-inf"))
    return Span(tokens, count, 1, keys, length, mask, causal=False)


def _prompt_span(sequence: _Sequence, window: int | None, block_size: int) -> Span:
    new, total = sequence.query_len, sequence.context_len
    tokens = slice(sequence.first_token, sequence.first_token + new)
    windowed = window is not None and total > window
    if new == sequence.num_keys and not windowed:
        return Span(tokens, 1, new, None, new, None, causal=True)
    keys = None if new == total else _lying_together(sequence.rows(block_size, sequence.first_key, total))
    query = torch.arange(total - new, total)[:, None]
    key = torch.arange(sequence.first_key, total)[None, :]
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    mask = torch.zeros(1, 1, *hidden.shape).masked_fill_(hidden, float("-inf"))
    return Span(tokens, 1, new, keys, sequence.num_keys, mask, causal=False)


def _lying_together(rows: Ints) -> slice | torch.Tensor:
    if rows[-1] - rows[0] == len(rows) - 1 and bool(np.all(np.diff(rows) == 1)):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return torch.from_numpy(rows)
