"""One stream of large models at 8 and 4 bits, as a share of what this machine's memory can be read at.

A decode step of one stream reads every weight once, so bytes a token times tokens a second come close to the read
bandwidth, which neighbours take at some times and not at others. So tokens and plain reads of a buffer far larger than
any cache take turns in one process: the share is between medians of the same minute. The plain reads are those of the
numeric libraries, not the hardware's limit: a share above 100 % says that the kernels read better than they do. Models
have the shapes of Llama 3.2 and random weights, quantised at load, each in a process of its own, whose peak of memory
is told too, less the buffer.

    python benchmarks/bandwidth.py --models 1B 3B
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from sagellm_core import models
from sagellm_core.executor.backends import open_backend
from sagellm_core.loading import open_checkpoint
from sagellm_protocol.backend import AttentionBatch
from sagellm_protocol.devices import DType

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64}
    | {"num_attention_heads": 32},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "head_dim": 128}
    | {"num_attention_heads": 24},
}
"""Llama 3.2, by its own configuration files."""
ALIKE: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
CONTEXT = 64
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Decoding:
    """What one model took.

    Attributes:
        load_s: Making the weights up, quantising and packing them.
        peak_gb: Most memory the process had.
        token_bytes: Bytes that a token reads: weights and cached keys and values.
        token_s: Time of each step.
        read_gbs: Of each method of reading, GB/s of each turn.
    """

    load_s: float
    peak_gb: float
    token_bytes: int
    token_s: list[float]
    read_gbs: dict[str, list[float]]


class Reading:
    """Plain reads of one buffer by several methods."""

    def __init__(self, threads: int, gib: float) -> None:
        self.buffer = np.ones(
            int(gib * (1 << 28)), np.float32
        )  # touched, and by huge pages where the system gives them
        tensor, pieces, pool = (
            torch.from_numpy(self.buffer),
            np.array_split(self.buffer, threads),
            ThreadPoolExecutor(threads),
        )
        self.methods: dict[str, Callable[[], object]] = {
            "torch.sum": tensor.sum,
            "torch.max": tensor.max,
            "numpy.max in threads": lambda: list(pool.map(np.max, pieces)),
        }
        self.found: dict[str, list[float]] = {name: [] for name in self.methods}

    def turn(self) -> None:
        """Read once by each."""
        for name, method in self.methods.items():
            self.found[name].append(self.buffer.nbytes / seconds(method) / 1e9)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def decode(folder: Path, quantization: str | None, threads: int, tokens: int, gib: float) -> Decoding:
    """Load a model of made-up weights and decode one stream, greedily, through the model and kernels that serve."""
    checkpoint = open_checkpoint(folder, "dummy")
    begun = time.perf_counter()
    ops = open_backend("cpu", dtype="bfloat16", threads=threads)
    model = models.load(checkpoint, ops, DType.BFLOAT16, quantization)
    load_s = time.perf_counter() - begun
    blocks = -(-(CONTEXT + tokens) // BLOCK_SIZE)
    cache = ops.allocate_kv(model.kv_specs, blocks, BLOCK_SIZE, DType.BFLOAT16)

    def step(ids: list[int], past: int) -> int:
        plan = ops.plan_attention(
            cache, AttentionBatch([len(ids)], [past + len(ids)], [[list(range(-(-(past + len(ids)) // BLOCK_SIZE)))]])
        )
        positions = ops.from_host(list(range(past, past + len(ids))), DType.INT32)
        hidden = model.forward(ops.from_host(ids, DType.INT32), positions, cache, plan)
        return int(model.logits(hidden[-1:]).argmax())

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    reading = Reading(threads, gib)
    token, times = step([7 * place % 50000 for place in range(CONTEXT)], 0), []
    for past in range(CONTEXT, CONTEXT + tokens):
        if past % 4 == 0:
            reading.turn()
            step([token], past)  # once without being timed: the buffer has just swept the caches
        begun = time.perf_counter()
        token = step([token], past)
        times.append(time.perf_counter() - begun)
    cached = sum(2 * spec.num_kv_heads * spec.head_dim * 2 for spec in model.kv_specs) * (CONTEXT + tokens // 2)
    return Decoding(load_s, peak, model.weight_bytes + cached, times, reading.found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(SHAPES), default=["1B"])
    parser.add_argument("--quantizations", nargs="+", choices=("int8", "int4", "none"), default=["int8", "int4"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokens", type=int, default=32, help="decoded by each; the median counts (%(default)s)")
    parser.add_argument("--gib", type=float, default=1.0, help="size of the buffer that is read (%(default)s)")
    given = parser.parse_args(arguments)
    print(f"`python {' '.join([sys.argv[0], *(arguments or sys.argv[1:])])}`; load {os.getloadavg()[0]:.1f}\n")
    spawning = multiprocessing.get_context("spawn")
    rows = []
    with tempfile.TemporaryDirectory() as made:
        for name in given.models:
            folder = Path(made) / name
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps({**ALIKE, **SHAPES[name]}))
            for quantization in given.quantizations:
                asked = None if quantization == "none" else quantization
                with ProcessPoolExecutor(1, mp_context=spawning) as process:
                    found = process.submit(decode, folder, asked, given.threads, given.tokens, given.gib).result()
                rows.append((name, quantization, found))
    print(
        "| model | weights | load s | peak GB | MB a token | tokens/s | GB/s | plain read, GB/s | share |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    for name, quantization, found in rows:
        token_s = median(found.token_s)
        rate, read = found.token_bytes / token_s / 1e9, max(map(median, found.read_gbs.values()))
        print(
            f"| {name} | {quantization} | {found.load_s:.0f} | {found.peak_gb:.2f} | {found.token_bytes / 1e6:.0f}"
            f" | {1 / token_s:.1f} | {rate:.1f} | {read:.1f} | {rate / read:.0%} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
