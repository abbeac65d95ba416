"""``transformers``: ``generate``, uncompiled, its default attention; several prompts of one length as one batch."""

from __future__ import annotations

from typing import Any

import channel
import torch
import transformers


def load(options: dict[str, Any]) -> channel.Generate:
    """As :func:`channel.serve` wants it."""
    torch.set_num_threads(options["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None

    def generate(prompts: list[list[int]], tokens: int) -> int:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
            )
        return made.shape[0] * (made.shape[1] - ids.shape[1])

    return generate


if __name__ == "__main__":
    channel.serve(load)
