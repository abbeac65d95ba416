"""How far a model is from the reference implementation: largest difference of logits, and whether greedy tokens agree.

The model runs over a paged cache: the prompt in chunks, then a token a step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

import tiny
from paged import Paged
from sagellm_core.models.base import Model
from sagellm_protocol.backend import Backend

TOLERANCE = 1e-4
PROMPT, ANSWER, CHUNK = 29, 24, 11


@dataclass(frozen=True)
class Agreement:
    """What a comparison found.

    Attributes:
        difference: Largest absolute difference of a logit, over prompt and answer.
        greedy_equal: The greedy answers are equal, token for token.
    """

    difference: float
    greedy_equal: bool


def follow(reference: PreTrainedModel, model: Model, ops: Backend[Any]) -> Agreement:
    """Let both answer one prompt greedily, and compare."""
    deck = random.Random(5)
    prompt = [deck.randrange(tiny.VOCAB) for _ in range(PROMPT)]
    with torch.no_grad():
        ids = torch.tensor([prompt])
        theirs: Any = reference.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),  # else token 0 would be taken for padding
            do_sample=False,
            max_new_tokens=ANSWER,
            min_new_tokens=ANSWER,
            pad_token_id=0,
        )
        expected = reference(theirs).logits[0].numpy()
    tokens = list(prompt)
    paged = Paged(model, ops, [tokens])
    for start in range(0, PROMPT, CHUNK):
        paged.run([[(0, min(CHUNK, PROMPT - start))]])
    for _ in range(ANSWER):
        tokens.append(int(np.argmax(_allowed(paged.logits[0][-1]))))
        paged.run([[(0, 1)]])
    equal = tokens == theirs[0].tolist()
    rows = np.stack(paged.logits[0])
    return Agreement(float(np.abs(rows - expected)[: len(rows) if equal else PROMPT].max()), equal)


def _allowed(logits: Any) -> Any:
    """Without the end of text, which the reference may not produce before its answer is full either."""
    logits = logits.copy()
    logits[2] = -np.inf
    return logits
