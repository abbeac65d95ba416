"""What more of everything costs our engine: streams from 1 to 128, and contexts from 128 tokens to the model's limit.

Each line is an engine of its own, started afresh, so that its memory is what that much work takes. A round warms up,
then the median of several counts. Prompts are random tokens.

    python -m benchmarks.scaling --rounds 3 --json benchmarks/results/scaling.json --plot docs/scaling.svg
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engine import prompts_of
from benchmarks.machine import describe_machine
from benchmarks.plot import Panel, draw

from sagellm_core import LLM
from sagellm_core.store import DEFAULT_MODEL, resolve
from sagellm_protocol import SamplingParams

STREAMS = (1, 2, 4, 8, 16, 32, 64, 128)
STREAM_PROMPT = STREAM_OUTPUT = 128
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
CONTEXT_OUTPUT = 32
"""Tokens made at the end of a context; their mean distance is the time of a step there."""
_MIB_IN_MB = 1.048576


@dataclass(frozen=True)
class Point:
    """One line of a table: medians over the rounds.

    Attributes:
        size: Streams, or tokens of context at the end.
        output_tps: Output tokens a second over the whole time, prefill included.
        step_ms: Time between two tokens of a stream, the median one.
        ttft_ms: Time to a stream's first token, the median one.
        memory_mb: MB (10^6 bytes) that the core had resident at its highest.
    """

    size: int
    output_tps: float
    step_ms: float
    ttft_ms: float
    memory_mb: float


@dataclass
class Scaling:
    """A run, as JSON keeps it."""

    machine: str
    date: str
    model: str
    dtype: str
    threads: int
    rounds: int
    streams: list[Point] = field(default_factory=list)
    contexts: list[Point] = field(default_factory=list)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Scaling:
        """Read what ``dataclasses.asdict`` gave."""
        points = {name: [Point(**one) for one in values[name]] for name in ("streams", "contexts")}
        return cls(**{**values, **points})


def measure(path: Path, dtype: str, threads: int, rounds: int, lengths: Sequence[int], output: int, size: int) -> Point:
    """Start an engine and give it ``len(lengths)`` prompts at once, round after round.

    Args:
        path: The model.
        dtype: Type it computes in.
        threads: Threads it computes with.
        rounds: That count.
        lengths: Tokens of each prompt.
        output: Tokens of each output.
        size: What the point is called.
    """
    sequences = max(len(lengths), 64)  # the default, and more where there are more
    with LLM(str(path), core="process", dtype=dtype, threads=threads, max_num_seqs=sequences) as llm:
        vocab_size = llm.info.capabilities.vocab_size
        assert vocab_size is not None
        params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
        rates, steps, firsts = [], [], []
        for seed in range(rounds + 1):
            prompts = prompts_of(lengths, seed, vocab_size)
            begun = time.perf_counter()
            answers = llm.generate(prompts, params, progress=False)
            took = time.perf_counter() - begun
            if seed:
                rates.append(len(lengths) * output / took)
                steps.append(statistics.median(answer.metrics.tpot_ms or 0 for answer in answers))
                firsts.append(statistics.median(answer.metrics.ttft_ms or 0 for answer in answers))
        memory = (llm.stats().peak_mem_mb or 0) * _MIB_IN_MB
    return Point(size, statistics.median(rates), statistics.median(steps), statistics.median(firsts), memory)


def tables(found: Scaling) -> str:
    """Both tables in Markdown, after a line that says what was run."""
    parts = [
        f"{found.machine}; {found.date}; {found.model} ({found.dtype}), {found.threads} threads;"
        f" {'one round' if found.rounds == 1 else f'medians of {found.rounds} rounds'}."
    ]
    if found.streams:
        named = f"streams (prompt {STREAM_PROMPT}, output {STREAM_OUTPUT})"
        parts.append(_table(named, found.streams))
    if found.contexts:
        parts.append(_table(f"context of one stream (the last {CONTEXT_OUTPUT} tokens are output)", found.contexts))
    return "\n\n".join(parts)


def plot(found: Scaling) -> str:
    """Throughput over streams and a step's time over the context, as SVG."""
    panels = []
    if found.streams:
        panels.append(Panel("Output tokens a second", "streams", [(one.size, one.output_tps) for one in found.streams]))
    if found.contexts:
        panels.append(
            Panel(
                "Milliseconds a decode step", "tokens of context", [(one.size, one.step_ms) for one in found.contexts]
            )
        )
    return draw(panels)


def _table(size: str, points: Sequence[Point]) -> str:
    lines = [f"| {size} | output tok/s | ms a token | TTFT ms | memory MB |", "|---|---|---|---|---|"]
    lines += [
        f"| {one.size:,} | {one.output_tps:,.0f} | {one.step_ms:,.1f} | {one.ttft_ms:,.0f} | {one.memory_mb:,.0f} |"
        for one in points
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="path or catalogue name (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3, help="that count, after one to warm up (default: %(default)s)")
    parser.add_argument("--streams", type=int, nargs="*", default=STREAMS, help="(default: 1 to 128)")
    parser.add_argument("--contexts", type=int, nargs="*", default=CONTEXTS, help="(default: 128 to 8,192)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--plot", type=Path, help="also draw them, as SVG, here")
    given = parser.parse_args(arguments)
    path, today = resolve(given.model), dt.datetime.now().astimezone().date().isoformat()
    found = Scaling(describe_machine(), today, given.model, given.dtype, given.threads, given.rounds)
    common = (path, given.dtype, given.threads, given.rounds)
    for streams in given.streams:
        print(f"{streams} streams", file=sys.stderr, flush=True)
        found.streams.append(measure(*common, [STREAM_PROMPT] * streams, STREAM_OUTPUT, streams))
    for context in given.contexts:
        print(f"context {context}", file=sys.stderr, flush=True)
        found.contexts.append(measure(*common, [context - CONTEXT_OUTPUT], CONTEXT_OUTPUT, context))
    print(tables(found))
    if given.json:
        given.json.write_text(json.dumps(asdict(found), indent=1) + "\n")
    if given.plot:
        given.plot.write_text(plot(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
