"""What following a grammar costs: constrained streams beside free ones in one run, and a row's share of a step.

Both are measured in turn over as many tokens, so that a busy machine is busy for both; of several rounds the best
counts. The schema asks for more objects than there are tokens for, so every stream decodes to its end.

    python benchmarks/structured.py --streams 16 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sagellm_core import LLM
from sagellm_core.front.constraint import form_of
from sagellm_core.front.grammar import GrammarWriter
from sagellm_core.grammar.guidance import GuidanceCompiler
from sagellm_core.store import DEFAULT_MODEL, resolve
from sagellm_core.tokenizer import load_tokenizer
from sagellm_protocol import Response, SamplingParams, StructuredOutput

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 4},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 40},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
FORM = StructuredOutput(json_schema={"type": "array", "items": PERSON, "minItems": 500})


def answers(
    llm: LLM, streams: int, prompt: int, tokens: int, seed: int, form: StructuredOutput | None, temperature: float
) -> tuple[float, list[Response]]:
    """Output tokens a second of all streams at once, and what they said."""
    dice = random.Random(seed)
    top = llm.info.capabilities.vocab_size or 0
    prompts = [[dice.randrange(100, top) for _ in range(prompt)] for _ in range(streams)]
    params = SamplingParams(temperature=temperature, seed=seed, max_tokens=tokens, ignore_eos=True)
    begun = time.perf_counter()
    responses = llm.generate(prompts, params, progress=False, structured=form)
    took = time.perf_counter() - begun
    return sum(response.usage.completion_tokens for response in responses) / took, responses


def mask_costs(path: Path, vocab_size: int, responses: Sequence[Response]) -> list[float]:
    """Microseconds that each token's mask and its taking in cost, over what streams produced."""
    compiler = GuidanceCompiler(load_tokenizer(path), vocab_size, (2,))
    writer = GrammarWriter()
    grammar = compiler.compile(writer.text(form_of(FORM, writer)))
    words = np.zeros(-(-vocab_size // 32), dtype=np.int32)
    costs = []
    for response in responses:
        matcher = grammar.matcher()
        for token in response.output_tokens:
            begun = time.perf_counter()
            matcher.fill(words)
            matcher.accept([token])
            costs.append((time.perf_counter() - begun) * 1e6)
    return costs


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="path or catalogue name (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=3, help="of which the best counts (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args(arguments)
    path = resolve(given.model)
    llm = LLM(str(path), core="process", dtype=given.dtype, threads=given.threads, max_num_seqs=given.streams)
    best = {"free": 0.0, "constrained": 0.0}
    said: list[Response] = []
    try:
        for seed in range(given.rounds + 1):  # the first of them warms up
            for number, (name, form) in enumerate((("free", None), ("constrained", FORM))):
                # Other prompts for each: what one of them computed would be in the other's prefix cache.
                rate, responses = answers(
                    llm, given.streams, given.prompt, given.tokens, 2 * seed + number, form, given.temperature
                )
                said = responses if form is not None else said
                if seed:
                    best[name] = max(best[name], rate)
        vocab_size = llm.info.capabilities.vocab_size or 0
    finally:
        llm.close()
    costs = mask_costs(path, vocab_size, said)
    figures: dict[str, Any] = {
        **best,
        "ratio": best["constrained"] / best["free"],
        "mask_us_mean": statistics.fmean(costs),
        "mask_us_median": statistics.median(costs),
        "mask_us_worst": max(costs),
    }
    print(
        f"{given.model}, {given.dtype}, {given.threads} threads, {given.streams} streams of {given.prompt} +"
        f" {given.tokens} tokens, best of {given.rounds}; load {os.getloadavg()[0]:.1f}"
    )
    print(f"free        {best['free']:9.1f} tok/s")
    print(f"constrained {best['constrained']:9.1f} tok/s  ratio {figures['ratio']:.3f}")
    print(
        f"a row's mask and its taking in: mean {figures['mask_us_mean']:.1f} us,"
        f" median {figures['mask_us_median']:.1f}, worst {figures['mask_us_worst']:.1f}"
    )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
