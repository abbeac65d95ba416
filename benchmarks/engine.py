"""The engine beside ``transformers``: one model, one machine, one run; and what its work costs as there is more of it.

Both compute in the same type with the same number of threads, from the same weights, and are measured in turn, so that
a busy machine is busy for both; of several rounds the best counts. ``transformers`` runs eagerly, with its default
attention. Figures are output tokens over the whole wall time, prefill included, unless said otherwise.

    python benchmarks/engine.py --dtype bfloat16 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sagellm_core import LLM
from sagellm_core.store import DEFAULT_MODEL, resolve
from sagellm_protocol import Response, SamplingParams

Prompts = list[list[int]]


def prompts_of(lengths: Sequence[int], seed: int, vocab_size: int) -> Prompts:
    """Random tokens: no two prompts share a block, so that no prefix is found."""
    dice = random.Random(seed)
    return [[dice.randrange(100, vocab_size) for _ in range(length)] for length in lengths]


class Ours:
    """The engine, its core in a process of its own as it serves."""

    def __init__(self, path: Path, dtype: str, quantization: str | None, threads: int) -> None:
        self._llm = LLM(
            str(path), core="process", dtype=dtype, quantization=quantization, threads=threads, max_num_seqs=64
        )
        self.vocab_size: int = self._llm.info.capabilities.vocab_size or 0
        self.dtype: str = self._llm.info.capabilities.dtype or dtype

    def generate(self, prompts: Prompts, tokens: int) -> list[Response]:
        """Continue all prompts at once."""
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        return self._llm.generate(prompts, params, progress=False)

    def close(self) -> None:
        """Give the memory back."""
        self._llm.close()


class Theirs:
    """``transformers``, from the same file, its weights unpacked to the same type."""

    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self._torch = torch
        files: dict[str, Any] = {"pretrained_model_name_or_path": path}
        if path.is_file():
            unpacked = transformers.GgufConfig(dequantize=True)
            files = {
                "pretrained_model_name_or_path": path.parent,
                "gguf_file": path.name,
                "quantization_config": unpacked,
            }
        self._model = transformers.AutoModelForCausalLM.from_pretrained(**files, dtype=getattr(torch, dtype))
        self._model.generation_config.eos_token_id = None

    def generate(self, prompts: Prompts, tokens: int) -> None:
        """Continue all prompts at once, as one left-padded batch."""
        torch, longest = self._torch, max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            self._model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def compare(ours: Ours, theirs: Theirs, rounds: int) -> dict[str, dict[str, float]]:
    """The three figures that are held against ``transformers``; tokens a second."""
    ragged = [16 + 15 * number for number in range(16)]
    cases = {
        "one stream, prompt 32, output 128": ([32], 128, 128),
        "16 ragged streams, prompts 16 to 241, output 96": (ragged, 96, 16 * 96),
        "prefill of 1,024, output 1 (prompt tokens a second)": ([1024], 1, 1024),
    }
    figures = {}
    for name, (lengths, tokens, counted) in cases.items():
        best = {"ours": float("inf"), "theirs": float("inf")}
        for seed in range(rounds + 1):  # the first of them warms up
            prompts = prompts_of(lengths, seed, ours.vocab_size)
            for who, side in (("ours", ours), ("theirs", theirs)):
                took = seconds(partial(side.generate, prompts, tokens))
                if seed:
                    best[who] = min(best[who], took)
        rates = {who: counted / took for who, took in best.items()}
        figures[name] = {**rates, "ratio": rates["ours"] / rates["theirs"]}
        print(f"{name:55} {rates['ours']:9.1f} {rates['theirs']:13.1f} {figures[name]['ratio']:7.2f}x", flush=True)
    return figures


def growth(ours: Ours, rounds: int) -> dict[str, dict[str, float]]:
    """What more streams and longer contexts cost."""
    figures: dict[str, dict[str, float]] = {}
    print(f"\n{'streams (prompt 128, output 64)':35} {'tok/s':>9} {'ms a token':>11} {'TTFT ms':>9}")
    for streams in (1, 4, 16, 64):
        figures[f"{streams} streams"] = row = best_of(ours, [128] * streams, 64, rounds)
        print(f"{streams:<35} {row['tps']:9.1f} {row['tpot_ms']:11.2f} {row['ttft_ms']:9.1f}", flush=True)
    print(f"\n{'context of one stream (output 32)':35} {'tok/s':>9} {'ms a token':>11} {'TTFT ms':>9}")
    for context in (128, 512, 2048):
        figures[f"context {context}"] = row = best_of(ours, [context], 32, rounds)
        print(f"{context:<35} {row['tps']:9.1f} {row['tpot_ms']:11.2f} {row['ttft_ms']:9.1f}", flush=True)
    return figures


def best_of(ours: Ours, lengths: Sequence[int], tokens: int, rounds: int) -> dict[str, float]:
    """The fastest of several rounds, with its mean figures a request."""
    best: dict[str, float] = {"tps": 0.0}
    for seed in range(rounds):
        prompts = prompts_of(lengths, 1000 + seed, ours.vocab_size)
        begun = time.perf_counter()
        responses = ours.generate(prompts, tokens)
        tps = tokens * len(lengths) / (time.perf_counter() - begun)
        if tps > best["tps"]:
            metrics = [response.metrics for response in responses]
            best = {
                "tps": tps,
                "tpot_ms": sum(one.tpot_ms or 0 for one in metrics) / len(metrics),
                "ttft_ms": sum(one.ttft_ms or 0 for one in metrics) / len(metrics),
            }
    return best


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="path or catalogue name (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--quantization", choices=("int8", "int4"), help="ours, at load; theirs stays unquantised")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3, help="of which the best counts (default: %(default)s)")
    parser.add_argument("--only", choices=("compare", "growth"), help="one of the two parts")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    path = resolve(given.model)
    ours = Ours(path, given.dtype, given.quantization, given.threads)
    figures: dict[str, Any] = {name: getattr(given, name) for name in ("model", "dtype", "quantization", "threads")}
    print(
        f"{given.model}, {given.quantization or given.dtype}, {given.threads} threads,"
        f" best of {given.rounds}; load {os.getloadavg()[0]:.1f}"
    )
    try:
        if given.only != "growth":
            theirs = Theirs(path, given.dtype, given.threads)
            print(f"\n{'tokens a second':55} {'ours':>9} {'transformers':>13} {'ratio':>8}")
            figures["compare"] = compare(ours, theirs, given.rounds)
        if given.only != "compare":
            figures["growth"] = growth(ours, given.rounds)
    finally:
        ours.close()
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
