"""The real model drafts out of what it reads, and says what it says without."""

from __future__ import annotations

from typing import Any

from sagellm_core import LLM
from sagellm_core.store import DEFAULT_MODEL
from sagellm_protocol import SamplingParams

FRUIT = ("apple", "pear", "plum", "fig") * 3
LISTED = "\n".join(f"{number}. {one} pie" for number, one in enumerate(FRUIT, start=1))
ASKED = [{"role": "user", "content": f"Repeat this list exactly, with nothing else:\n{LISTED}"}]


def test_a_copied_list_is_mostly_drafted(smollm2: object) -> None:
    answers: list[Any] = []
    for speculative in (None, {"method": "ngram", "adaptive": False}):
        with LLM(DEFAULT_MODEL, max_model_len=512, dtype="float32", speculative=speculative) as llm:
            params = [SamplingParams(temperature=t, seed=5, max_tokens=72) for t in (0.0, 0.7)]
            answers.append((llm.chat([ASKED, ASKED], params, progress=False), llm.stats()))
    (plain, before), (drafted, after) = answers
    assert [one.output_tokens for one in drafted] == [one.output_tokens for one in plain]
    assert drafted[0].metrics.spec_accept_rate > 0.5
    assert after.steps < 0.6 * before.steps
