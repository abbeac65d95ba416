"""Our engine, its core in a process of its own as it serves."""

from __future__ import annotations

from typing import Any

import channel

from sagellm_core import LLM
from sagellm_protocol import SamplingParams


def load(options: dict[str, Any]) -> channel.Generate:
    """As :func:`channel.serve` wants it."""
    llm = LLM(options["model"], core="process", threads=options["threads"], max_num_seqs=options["streams"])

    def generate(prompts: list[list[int]], tokens: int) -> int:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        answers = llm.generate(prompts, params, progress=False)
        return sum(answer.usage.completion_tokens for answer in answers)

    return generate


if __name__ == "__main__":
    channel.serve(load)
