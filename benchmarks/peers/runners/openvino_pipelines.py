"""OpenVINO GenAI: ``LLMPipeline`` for one request, ``ContinuousBatchingPipeline`` for several; made when needed."""

from __future__ import annotations

from functools import cache
from typing import Any

import channel
import numpy as np
import openvino as ov
import openvino_genai as genai


def load(options: dict[str, Any]) -> channel.Generate:
    """As :func:`channel.serve` wants it."""
    properties = {"INFERENCE_NUM_THREADS": options["threads"]}

    @cache
    def single() -> genai.LLMPipeline:
        return genai.LLMPipeline(options["model"], "CPU", **properties)

    @cache
    def batching() -> genai.ContinuousBatchingPipeline:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_seqs = options["streams"]
        scheduler.enable_prefix_caching = False
        return genai.ContinuousBatchingPipeline(options["model"], scheduler, "CPU", properties)

    def generate(prompts: list[list[int]], tokens: int) -> int:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        ids = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        if len(prompts) == 1:
            return sum(len(tokens) for tokens in single().generate(ids[0], config).tokens)
        answers = batching().generate(ids, [config] * len(ids))
        return sum(len(answer.m_generation_ids[0]) for answer in answers)

    return generate


if __name__ == "__main__":
    channel.serve(load)
