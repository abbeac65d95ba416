"""What runs beside a request changes nothing of it, to the last bit, where an engine has promised that."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import pytest

import tiny
from sagellm_backend.cpu.native.library import load as kernels
from sagellm_core import LLM
from sagellm_core.executor.backends import open_backend
from sagellm_core.executor.inline import InlineExecutor
from sagellm_core.loading import open_checkpoint
from sagellm_protocol import ErrorCode, Output, Response, SageLLMError, SamplingParams
from tiny_llm import write_tiny

PROMISED = {"deterministic": True}
native = pytest.mark.skipif(kernels() is None, reason="native kernels are not built here")


def numbers(response: Response) -> list[Any]:
    """All that a response says of its tokens, log-probabilities as they are."""

    def of(output: Output) -> list[Any]:
        assert output.logprobs is not None
        return [(entry.token_id, entry.logprob, [top.logprob for top in entry.top]) for entry in output.logprobs]

    return [of(output) for output in response.outputs]


@native
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_request_has_the_same_numbers_alone_and_among_others(tmp_path: Path, quantization: str | None) -> None:
    folder = str(write_tiny(tmp_path, hidden_size=64))
    deck = random.Random(8)
    prompts = ["".join(deck.choices(string.ascii_lowercase, k=deck.randrange(2, 60))) for _ in range(12)]
    params = [
        SamplingParams(temperature=0.7 * (number % 2), seed=number, max_tokens=12, logprobs=2, n=1 + number % 3 // 2)
        for number in range(len(prompts))
    ]
    how: dict[str, Any] = {"dtype": "bfloat16", "quantization": quantization, "options": PROMISED}
    with LLM(folder, max_num_seqs=1, **how) as alone:
        want = [numbers(alone.generate(one, params[number])[0]) for number, one in enumerate(prompts)]
    # Chunks of 24 tokens, and a pool that cannot hold all: preemption.
    with LLM(folder, max_num_batched_tokens=24, max_num_seqs=8, kv_cache_memory_bytes=1 << 17, **how) as together:
        got = [numbers(response) for response in together.generate(prompts, params, progress=False)]
        assert got == want
        again = [numbers(response) for response in together.generate(prompts, params, progress=False)]
        assert again == want


@pytest.mark.parametrize(
    ("recipe", "dtype", "what"),
    [
        ("llama", "float32", "model.layers.0.self_attn.q_proj.weight"),
        pytest.param("qwen3_moe", "bfloat16", "model.layers.0.mlp.gate.weight", marks=native),
    ],
)
def test_what_would_vary_is_refused_by_name(tmp_path: Path, recipe: str, dtype: str, what: str) -> None:
    checkpoint = open_checkpoint(tiny.save(tiny.make(recipe), tmp_path))
    with pytest.raises(SageLLMError, match=f"deterministic cannot be kept: products with .*{what}") as refusal:
        InlineExecutor(checkpoint, open_backend("cpu", dtype=dtype, threads=1), dtype=dtype, deterministic=True)
    assert (refusal.value.code, refusal.value.param) == (ErrorCode.UNSUPPORTED, "options.deterministic")
