"""vLLM's CPU build, through its ``LLM``."""

from __future__ import annotations

from typing import Any

import channel


def load(options: dict[str, Any]) -> channel.Generate:
    """As :func:`channel.serve` wants it."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=options["model"],
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=options["streams"],
        enable_prefix_caching=False,
    )

    def generate(prompts: list[list[int]], tokens: int) -> int:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return sum(len(answer.outputs[0].token_ids) for answer in answers)

    return generate


# vLLM may start its core by importing this file anew.
if __name__ == "__main__":
    channel.serve(load)
