"""What an engine's time goes to, measured from what it has done: seconds a step, a prompt token, an output token.

Knows nothing of requests. Steps count apart from tokens because an engine computes the next token of many answers in
one step: without them a lightly loaded engine would look as if it could do little more.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from sagellm_control_plane.board import Floats
from sagellm_control_plane.fitting import non_negative
from sagellm_control_plane.observing import EngineWork

KEPT = 120
"""Spans that are fitted to."""
LEAST_BUSY_S = 0.02
"""A span with less work than this tells mostly of noise."""
LEAST_SPANS = 3
LEAST_APART = 0.05
"""Share of the steps that tokens do not account for: with less, what a step costs cannot be told from what they do."""


@dataclass(frozen=True)
class Costs:
    """Seconds of an engine's time. A cost that is 0 could not be told from the others."""

    step_s: float = 0.0
    prompt_token_s: float = 0.0
    """Of a token as it arrives: one found in the prefix cache makes the mean cheaper."""
    output_token_s: float = 0.0

    @property
    def prefill_tps(self) -> float | None:
        """Prompt tokens a second of an engine that does nothing else."""
        return 1 / self.prompt_token_s if self.prompt_token_s > 0 else None

    def decode_tps(self, itl_s: float | None = None) -> float | None:
        """Output tokens a second of an engine that does nothing else.

        Args:
            itl_s: Time between two tokens of an answer that is kept; ``None`` lets it grow without bounds.
        """
        share = 1.0 if itl_s is None else max(0.0, 1 - self.step_s / itl_s)
        return share / self.output_token_s if self.output_token_s > 0 else None


class CostMeter:
    """Learns costs from the work that engines of one kind report."""

    def __init__(self) -> None:
        self._last: dict[int, EngineWork] = {}
        self._spans: deque[tuple[float, float, float, float]] = deque(maxlen=KEPT)
        self._costs: Costs | None = None
        self._stale = False

    def measured(self, row: int, work: EngineWork) -> None:
        """An engine has done so much since it started."""
        before, self._last[row] = self._last.get(row), work
        if before is None:
            return
        busy = work.busy_s - before.busy_s
        prompt = work.prompt_tokens - before.prompt_tokens
        output = work.output_tokens - before.output_tokens
        steps = np.nan if work.steps is None or before.steps is None else float(work.steps - before.steps)
        if busy < LEAST_BUSY_S or prompt < 0 or output < 0 or steps < 0 or prompt + output == 0:
            # Little to learn from; or it was started anew, and counts from zero.
            return
        self._spans.append((steps, prompt, output, busy))
        self._stale = True

    def gone(self, row: int) -> None:
        """An engine left."""
        self._last.pop(row, None)

    def costs(self) -> Costs | None:
        """The costs that fit what was measured best; ``None`` while too little was."""
        if self._stale and len(self._spans) >= LEAST_SPANS:
            self._costs, self._stale = _fitted(np.array(self._spans, np.float64)), False
        return self._costs


def _fitted(spans: Floats) -> Costs:
    work, busy = spans[:, :3], spans[:, 3]
    if np.isfinite(work).all() and _apart(work[:, 0], work[:, 1:]):
        return Costs(*non_negative(work, busy))
    return Costs(0.0, *non_negative(work[:, 1:], busy))


def _apart(steps: Floats, tokens: Floats) -> bool:
    """Whether steps vary otherwise than tokens. Prompts and answers need not: work of the same mix costs the same."""
    accounted, *_ = np.linalg.lstsq(tokens / np.maximum(tokens.max(axis=0), 1), steps, rcond=None)
    rest = steps - tokens / np.maximum(tokens.max(axis=0), 1) @ accounted
    return bool(np.linalg.norm(rest) > LEAST_APART * np.linalg.norm(steps))
