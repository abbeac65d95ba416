"""What an engine takes for a step, and the figures it is described by. Times are seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np

from sagellm_control_plane.fitting import non_negative
from sagellm_protocol import ErrorCode, SageLLMError


@dataclass(frozen=True)
class EngineModel:
    """An engine with continuous batching: prompts in chunks under a token budget beside the sequences that decode.

    The defaults are reckoned for a model of 8 billion parameters in 16 bits on one device of 990 TFLOP/s, of which
    prompts reach four tenths, and 3.35 TB/s, with 128 KiB of keys and values a token and 256 GiB of host memory to keep
    them in. Fit your own with :func:`fit`.
    """

    step_s: float = 0.006
    prompt_token_s: float = 0.00004
    sequence_s: float = 0.00002
    context_token_s: float = 4e-8
    token_budget: int = 2048
    """Tokens of one step: a prompt's chunk, and one for each sequence that decodes."""
    max_num_seqs: int = 256
    cache_tokens: int = 2_000_000
    """Tokens of keys and values that fit, in memory of any kind: the time to fetch from the host's is not modelled.
    Some 400,000 fit on the device alone."""
    devices: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name.endswith("_s") else 1
            if not value >= least:
                raise SageLLMError(ErrorCode.INVALID_REQUEST, f"{field.name} must be {least} or more (got {value!r})")

    def steps_s(self, steps: int, sequences: int, context: int, prompt_tokens: int = 0) -> float:
        """Time of so many equal steps in a row, in closed form.

        Args:
            steps: How many.
            sequences: That decode in each.
            context: Tokens in their contexts at the first; every step adds ``sequences`` to it.
            prompt_tokens: Computed in each.
        """
        each = self.step_s + self.prompt_token_s * prompt_tokens + self.sequence_s * sequences
        grown = sequences * steps * (steps - 1) / 2
        return steps * each + self.context_token_s * (steps * context + grown)

    def steps_within(self, seconds: float, sequences: int, context: int) -> int:
        """How many whole decode steps fit into a time: the inverse of :meth:`steps_s` without prompts."""
        a = self.context_token_s * sequences / 2
        b = self.step_s + self.sequence_s * sequences + self.context_token_s * (context - sequences / 2)
        guess = seconds / b if a <= 0 else (-b + (b * b + 4 * a * seconds) ** 0.5) / (2 * a)
        steps = max(0, int(guess) - 1)
        while self.steps_s(steps + 1, sequences, context) <= seconds:
            steps += 1
        return steps


@dataclass(frozen=True)
class StepSample:
    """One measured step of an engine."""

    prompt_tokens: int
    sequences: int
    context_tokens: int
    seconds: float


def fit(samples: Iterable[StepSample], base: EngineModel | None = None) -> EngineModel:
    """The step times that measured steps come nearest to, by least squares with no negative coefficient.

    Args:
        samples: Measured steps; at least four that differ.
        base: Gives the limits, which samples do not tell.

    Raises:
        SageLLMError: ``INVALID_REQUEST`` for too few samples.
    """
    rows = [(1.0, s.prompt_tokens, s.sequences, s.context_tokens, s.seconds) for s in samples]
    names = ("step_s", "prompt_token_s", "sequence_s", "context_token_s")
    if len(rows) < len(names):
        raise SageLLMError(ErrorCode.INVALID_REQUEST, f"a fit needs {len(names)} samples or more (got {len(rows)})")
    table = np.array(rows, np.float64)
    coefficients = non_negative(table[:, :-1], table[:, -1])
    step, prompt, sequence, context = coefficients
    return replace(
        base or EngineModel(), step_s=step, prompt_token_s=prompt, sequence_s=sequence, context_token_s=context
    )
