"""Sampling in native code, rows dealt out over threads; edits of a row's scores stay NumPy's.

Draws what ``cpu/sampling.py`` draws, from float32 and from BF16 scores as they are: only rows with edits are ever
copied. Knows nothing of requests or seeds.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sagellm_backend.cpu.edits import edit_logits, edited_rows
from sagellm_backend.cpu.sampling import COLDEST, no_numbers
from sagellm_protocol.backend import RowLogprobs, Sampled, SamplingBatch

from .library import Library
from .matrix import check
from .structs import Draw, Drawn

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_DRAW, _DRAWN = np.dtype(Draw), np.dtype(Drawn)


def sample(library: Library, logits: torch.Tensor, batch: SamplingBatch, level: int | None = None) -> Sampled:
    """Draw one token from each row of ``[R, V]``; may overwrite ``logits``.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for edits that cannot be made; ``INTERNAL`` for scores that are no numbers.
    """
    logits = _readable(logits)
    rows = logits.shape[0]
    level = library.level if level is None else level
    edited = edited_rows(batch)
    silent = batch.logprobs.count(None) == rows
    if silent and not edited and batch.temperature.count(0) == rows:
        tokens = _greedy(library, logits, level)
        return Sampled(token_ids=tokens, logprobs=[None] * rows)
    draws = _draws(logits)
    draws["temperature"] = [max(value, COLDEST) if value else 0.0 for value in batch.temperature]
    draws["uniform"] = batch.uniform
    draws["top_k"] = np.minimum(batch.top_k, logits.shape[1])
    draws["top_p"] = batch.top_p
    if any(batch.min_p):
        draws["min_p"] = [math.log(least) if least > 0 else -math.inf for least in batch.min_p]
    if not silent:
        draws["top"] = [-1 if top is None else top for top in batch.logprobs]
    kept = _edit(logits, batch, edited, draws) if edited else None
    drawn, reports = _run(library, logits, draws, level)
    del kept  # the kernels read it until here
    tokens = drawn["token"].tolist()
    if -1 in tokens:
        raise no_numbers()
    return Sampled(token_ids=tokens, logprobs=reports)


def logprobs_of(
    library: Library, logits: torch.Tensor, token_ids: Sequence[int], top: int, level: int | None = None
) -> list[RowLogprobs]:
    """Log-probabilities of one token a row of ``[R, V]``, each with its ``top`` likeliest."""
    logits = _readable(logits)
    draws = _draws(logits)
    draws["token"], draws["top"] = token_ids, top
    reports = _run(library, logits, draws, library.level if level is None else level)[1]
    return [report for report in reports if report is not None]


def _readable(logits: torch.Tensor) -> torch.Tensor:
    """As the kernels read it: itself, if it can be."""
    return (logits if logits.dtype in _TYPES else logits.float()).contiguous()


def _greedy(library: Library, logits: torch.Tensor, level: int) -> list[int]:
    """The likeliest of each row, in as few calls as it takes: one stream's step waits for them."""
    rows, vocabulary = logits.shape
    found = (ctypes.c_int32 * rows)()
    scores = ctypes.c_void_p(logits.data_ptr())
    kind, team = _TYPES[logits.dtype], torch.get_num_threads()
    check(library.handle.sage_greedy(level, team, kind, scores, rows, vocabulary, found))
    tokens = found[:]
    if -1 in tokens:
        raise no_numbers()
    return tokens


def _draws(logits: torch.Tensor) -> NDArray[Any]:
    """One ``SageDraw`` a row, that asks for nothing yet."""
    rows, vocabulary = logits.shape
    draws = np.zeros(rows, _DRAW)
    draws["scores"] = draws["raw"] = logits.data_ptr() + np.arange(rows) * (vocabulary * logits.element_size())
    draws["type"] = draws["raw_type"] = _TYPES[logits.dtype]
    draws["top_p"], draws["min_p"] = 1, -math.inf
    draws["token"] = draws["top"] = -1
    return draws


def _edit(logits: torch.Tensor, batch: SamplingBatch, edited: list[int], draws: NDArray[Any]) -> list[Any]:
    """Edit rows in float32: in place, unless they are BF16 or still to be reported on. Returns what draws point to."""
    scores: list[NDArray[np.float32]] = []
    in_place = logits.dtype is torch.float32
    values = logits.numpy() if in_place else logits.view(torch.int16).numpy()
    for row in edited:
        if not in_place:
            # By NumPy: torch would wake a second thread for a row.
            scores.append((values[row].astype(np.uint32) << 16).view(np.float32))
        else:
            scores.append(values[row].copy() if draws["top"][row] >= 0 else values[row])
    edit_logits(scores, batch, edited)
    draws["scores"][edited] = [one.ctypes.data for one in scores]
    draws["type"][edited] = _TYPES[torch.float32]
    return scores


def _run(
    library: Library, logits: torch.Tensor, draws: NDArray[Any], level: int
) -> tuple[NDArray[Any], list[RowLogprobs | None]]:
    rows, vocabulary = logits.shape
    width = min(max(0, int(draws["top"].max(initial=0))), vocabulary)
    drawn = np.empty(rows, _DRAWN)
    ids, logprobs = np.empty((rows, width), np.int32), np.empty((rows, width), np.float32)
    asked, answered, top_ids, top_logprobs = (
        ctypes.c_void_p(array.ctypes.data) for array in (draws, drawn, ids, logprobs)
    )
    team = torch.get_num_threads()
    check(library.handle.sage_sample(level, team, asked, rows, vocabulary, answered, width, top_ids, top_logprobs))
    reports: list[RowLogprobs | None] = [None] * rows
    for row in np.flatnonzero((draws["top"] >= 0) & (drawn["token"] >= 0)).tolist():
        top = int(drawn["top"][row])
        reports[row] = RowLogprobs(
            logprob=drawn["logprob"][row].item(),
            rank=int(drawn["rank"][row]),
            top=tuple(zip(ids[row, :top].tolist(), logprobs[row, :top].tolist(), strict=True)),
        )
    return drawn, reports
