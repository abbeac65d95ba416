"""Where drafting tokens pays: tokens a second with and without, in turn, in one run.

Two tasks at several numbers of streams. *Copying*: a numbered list is repeated with a small change, so that most of the
answer stands in the prompt. *Chat*: an open question, sampled, whose answer stands nowhere. The same questions are
asked of an engine that drafts by look-up and of one that does not; of several rounds in turn the ratio of each counts,
and the median is printed. Answers to copying are greedy and are compared.

    python benchmarks/speculation.py --streams 1 4 16 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from sagellm_core import LLM
from sagellm_core.store import DEFAULT_MODEL
from sagellm_protocol import EngineStats, Response, SamplingParams

FRUIT = ("apple", "pear", "plum", "cherry", "grape", "lemon", "orange", "banana", "mango", "papaya", "melon", "fig")
QUESTIONS = (
    "Tell me a story about a lighthouse keeper.",
    "How would you spend a week in the mountains?",
    "Why do people keep diaries?",
    "Describe a town by the sea to somebody who has never seen one.",
)
TASKS = ("copying", "chat")


def ask(llm: LLM, task: str, streams: int, tokens: int, seed: int) -> tuple[float, list[Response]]:
    """Output tokens a second of all streams at once, and what they said."""
    prompts = [_conversation(task, stream, seed) for stream in range(streams)]
    temperature = 0.0 if task == "copying" else 0.8
    params = SamplingParams(temperature=temperature, seed=seed, max_tokens=tokens, ignore_eos=True)
    begun = time.perf_counter()
    responses = llm.chat(prompts, params, progress=False)
    return sum(one.usage.completion_tokens for one in responses) / (time.perf_counter() - begun), responses


def _conversation(task: str, stream: int, seed: int) -> list[dict[str, str]]:
    if task == "chat":
        return [{"role": "user", "content": f"{QUESTIONS[(stream + seed) % len(QUESTIONS)]} ({seed}.{stream})"}]
    fruit = [FRUIT[(number * (stream + 3) + seed) % len(FRUIT)] for number in range(1, 31)]
    lines = [f"{number}. {one} pie with cream" for number, one in enumerate(fruit, start=1)]
    return [{"role": "user", "content": "Repeat this list exactly, with nothing else:\n" + "\n".join(lines)}]


def measure(plain: LLM, drafting: LLM, task: str, streams: int, tokens: int, rounds: int) -> dict[str, Any]:
    """One row: both engines in turn, round after round."""
    rates: dict[str, list[float]] = {"plain": [], "drafting": []}
    same, before = True, drafting.stats()
    for seed in range(rounds + 1):
        rate, said = ask(plain, task, streams, tokens, seed)
        drafted_rate, drafted_said = ask(drafting, task, streams, tokens, seed)
        same &= [one.output_tokens for one in said] == [one.output_tokens for one in drafted_said]
        if seed:  # the first warms up
            rates["plain"].append(rate)
            rates["drafting"].append(drafted_rate)
    ratios = [fast / slow for fast, slow in zip(rates["drafting"], rates["plain"], strict=True)]
    return {
        "task": task,
        "streams": streams,
        "plain": round(statistics.median(rates["plain"]), 1),
        "drafting": round(statistics.median(rates["drafting"]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "same": same,
        **_drafts(before, drafting.stats()),
    }


def _drafts(before: EngineStats, after: EngineStats) -> dict[str, Any]:
    drafted = (after.drafted_tokens or 0) - (before.drafted_tokens or 0)
    accepted = (after.accepted_tokens or 0) - (before.accepted_tokens or 0)
    made = (after.generation_tokens or 0) - (before.generation_tokens or 0)
    rate = round(accepted / drafted, 3) if drafted else None
    return {"accept_rate": rate, "drafts_a_token": round(drafted / made, 3)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line of JSON a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--draft", help="a smaller model that drafts, in place of look-up")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--drafts", type=int, help="most tokens drafted at a time")
    parser.add_argument("--always", action="store_true", help="draft whether it pays or not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    asked = parser.parse_args(arguments)
    speculative: dict[str, Any] = {"method": "draft", "model": asked.draft} if asked.draft else {"method": "ngram"}
    speculative |= {"adaptive": not asked.always} | ({"tokens": asked.drafts} if asked.drafts else {})
    options: dict[str, Any] = {"dtype": asked.dtype, "threads": asked.threads, "max_model_len": 1024}
    # Both at once: the same machine, at the same moment. They take turns, so neither waits for the other.
    with (
        LLM(asked.model, prefix_caching=False, **options) as plain,
        LLM(asked.model, prefix_caching=False, speculative=speculative, **options) as drafting,
    ):
        for task in asked.tasks:
            for streams in asked.streams:
                row = measure(plain, drafting, task, streams, asked.tokens, asked.rounds)
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
