"""What reduced precision costs in accuracy: one text, one model, several ways to compute it, one table.

Each way predicts every token of ``benchmarks/accuracy.txt`` from those before it, through the model and the kernels
that serve. It is held against float32 and BF16 with the same weights: how often the likeliest token is the same, how
far the true token's log-probability moves on average, and the Kullback-Leibler divergence over the whole vocabulary.

The default model comes as Q4_1. Expanded to BF16 its weights still lie on a grid of 16 values a block, which ``int4``
finds again; so there are rows for the same function with its features reordered too (``checkpoints.py --off-grid``),
and those are what to expect of a checkpoint that was never quantised. A text this short tells differences of some
percent.

    python benchmarks/accuracy.py
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from checkpoints import bf16_folder

from sagellm_core import models
from sagellm_core.executor.backends import open_backend
from sagellm_core.loading import open_checkpoint
from sagellm_core.store import DEFAULT_MODEL, resolve
from sagellm_core.tokenizer import load_tokenizer
from sagellm_protocol.backend import AttentionBatch
from sagellm_protocol.devices import DType

TEXT = Path(__file__).with_name("accuracy.txt")
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Way:
    """One way to compute a model.

    Attributes:
        weights: What is computed, for the table.
        path: Where it is.
        dtype: Type that is computed in.
        quantization: What it is quantised to at load.
        kv_dtype: Type that keys and values are kept in, where not ``dtype``.
    """

    weights: str
    path: Path
    dtype: DType
    quantization: str | None = None
    kv_dtype: DType | None = None

    @property
    def name(self) -> str:
        """As the table has it."""
        kept = f", keys and values {self.kv_dtype.value}" if self.kv_dtype else ""
        return (self.quantization or self.dtype.value) + kept


@dataclass(frozen=True)
class Predictions:
    """Log-probabilities of the next token at each position, ``[T - 1, V]`` float32, and the weights' bytes."""

    logprobs: torch.Tensor
    weight_bytes: int


def predict(way: Way, ids: Sequence[int], threads: int) -> Predictions:
    """Every token of a text from those before it."""
    ops = open_backend("cpu", dtype=way.dtype.value, threads=threads)
    model = models.load(open_checkpoint(way.path), ops, way.dtype, way.quantization)
    blocks = -(-len(ids) // BLOCK_SIZE)
    cache = ops.allocate_kv(model.kv_specs, blocks, BLOCK_SIZE, way.kv_dtype or way.dtype)
    groups = len(dict.fromkeys(model.kv_specs))
    plan = ops.plan_attention(cache, AttentionBatch([len(ids)], [len(ids)], [[list(range(blocks))]] * groups))
    positions = ops.from_host(list(range(len(ids))), DType.INT32)
    hidden = model.forward(ops.from_host(list(ids), DType.INT32), positions, cache, plan)
    logits = model.logits(ops.take_rows(hidden, range(len(ids) - 1)))
    return Predictions(torch.log_softmax(logits.float(), dim=-1), model.weight_bytes)


def beside(got: torch.Tensor, truth: torch.Tensor, targets: torch.Tensor) -> str:
    """Cells of a comparison: same likeliest token, mean difference of the true token's log-probability, divergence."""
    same = (got.argmax(-1) == truth.argmax(-1)).float().mean().item()
    moved = (got - truth).gather(1, targets[:, None]).abs().mean().item()
    divergence = (truth.exp() * (truth - got)).sum(-1).mean().item()
    return f"{same:.1%} | {moved:.3f} | {divergence:.4f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=TEXT, help="what is predicted (default: %(default)s)")
    parser.add_argument("--folders", type=Path, help="where the BF16 folders are kept (default: made anew)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args(arguments)
    file = resolve(DEFAULT_MODEL)
    ids = load_tokenizer(file).encode(given.text.read_text())
    targets = torch.tensor(ids[1:])
    with tempfile.TemporaryDirectory() as made:
        kept = given.folders or Path(made)
        folders = {
            "Q4_1, expanded to BF16": bf16_folder(kept / "bf16"),
            "the same, reordered off the grid": bf16_folder(kept / "off-grid", off_grid=True),
        }
        print(f"`python {' '.join([sys.argv[0], *(arguments or sys.argv[1:])])}`: {DEFAULT_MODEL}, {len(ids)} tokens\n")
        print(
            "| weights | computed as | MB | perplexity | same top as float32 | mean difference | KL"
            " | same top as BF16 | mean difference | KL |\n|---|---|---|---|---|---|---|---|---|---|"
        )
        for weights, folder in folders.items():
            ways = [Way(weights, folder, DType.FLOAT32), Way(weights, folder, DType.BFLOAT16)]
            ways += [Way(weights, folder, DType.BFLOAT16, name) for name in ("int8", "int4")]
            if "int8" in (kind.value for kind in open_backend("cpu", dtype="bfloat16").capabilities().kv_dtypes):
                ways.append(Way(weights, folder, DType.BFLOAT16, kv_dtype=DType.INT8))
            if folder is folders["Q4_1, expanded to BF16"]:
                ways.append(Way("Q4_1, as shipped", file, DType.BFLOAT16))
            truths: list[torch.Tensor] = []
            for way in ways:
                found = predict(way, ids, given.threads)
                perplexity = math.exp(-found.logprobs.gather(1, targets[:, None]).mean().item())
                cells = [beside(found.logprobs, truth, targets) for truth in truths] + ["| | "] * (2 - len(truths))
                size = found.weight_bytes / 1e6
                print(
                    f"| {way.weights} | {way.name} | {size:.0f} | {perplexity:.2f} | {' | '.join(cells)} |", flush=True
                )
                if len(truths) < 2:
                    truths.append(found.logprobs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
